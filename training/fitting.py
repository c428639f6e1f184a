"""Fitting that survives interruption: a checkpoint and a line of figures an epoch, the best epoch kept."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from training.architecture import History, Run


class EpochLog(keras.callbacks.Callback):
    """Appends each epoch's figures and seconds to ``path``, a JSON object a line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._began = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the epoch's clock."""
        del epoch, logs
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's line."""
        figures = {key: float(np.mean(value)) for key, value in (logs or {}).items()}
        row = {"epoch": epoch + 1, "seconds": time.monotonic() - self._began, **figures}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class ResumeError(RuntimeError):
    """The work folder holds checkpoints of a run that was begun otherwise."""


def claim(work: Path, terms: Mapping[str, Any]) -> None:
    """Note in the work folder what its run was begun with, so that no other run goes on from its checkpoints.

    Args:
        terms: everything that training follows from, as JSON can hold it.

    Raises:
        ResumeError: naming each term that was another one when the folder's run was begun.
    """
    note = work / "run.json"
    asked = json.loads(json.dumps(terms))
    if not note.exists():
        work.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(asked, indent=2), encoding="utf-8")
        return
    begun = json.loads(note.read_text("utf-8"))
    changed = [
        f"{name.replace('_', ' ')} was {begun.get(name)}, now is {asked.get(name)}"
        for name in sorted({*begun, *asked})
        if begun.get(name) != asked.get(name)
    ]
    if changed:
        raise ResumeError(
            f"{work} holds a run that was begun otherwise: {'; '.join(changed)}. "
            "Ask for the same to go on with it, or remove that folder to begin anew."
        )


def read_history(path: Path) -> History:
    """The log that :class:`EpochLog` wrote; of an epoch begun twice the later line counts."""
    if not path.exists():
        return History(())
    rows = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return History(tuple({row["epoch"]: row for row in rows}.values()))


def fit(
    model: keras.Model,
    batches: Any,  # noqa: ANN401 - whatever Keras' fit takes
    run: Run,
    *,
    epochs: int,
    validation: Any = None,  # noqa: ANN401
    monitor: str | None = "val_accuracy",
    callbacks: tuple[keras.callbacks.Callback, ...] = (),
    stage: str = "fit",
) -> History:
    """Train a compiled model; begun again with the same ``run.work``, go on after the last finished epoch.

    Args:
        monitor: figure whose best epoch's weights are kept at the end (highest for an accuracy, lowest for a
            loss); None keeps the last epoch's.
        stage: names the checkpoints, for runs that fit more than once.
    """
    folder = run.work / stage
    folder.mkdir(parents=True, exist_ok=True)
    log, best = folder / "log.jsonl", folder / "best.weights.h5"
    done = read_history(log).rows
    kept: list[keras.callbacks.Callback] = []
    if monitor is not None:
        mode, extreme = ("max", max) if "accuracy" in monitor else ("min", min)
        kept.append(
            keras.callbacks.ModelCheckpoint(
                best,
                monitor=monitor,
                mode=mode,
                save_best_only=True,
                save_weights_only=True,
                initial_value_threshold=extreme(row[monitor] for row in done) if done else None,
            )
        )
    model.fit(
        batches,
        epochs=epochs,
        validation_data=validation,
        shuffle=False,  # the batches come shuffled
        verbose=1 if sys.stdout.isatty() else 2,
        callbacks=[
            EpochLog(log),
            keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False),
            *callbacks,  # behind the backup: averaged weights must not get into it
            *kept,
        ],
    )
    if monitor is not None:
        model.load_weights(best)
    return read_history(log)
