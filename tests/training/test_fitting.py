"""A training run that is cut off goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.tiny import tiny_run
from training import fitting
from training.architecture import History


class PowerCutError(Exception):
    """The machine went away."""


class Cut(keras.callbacks.Callback):
    """Cuts the power when an epoch (from 0) begins."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._epoch = epoch

    def on_epoch_begin(self, epoch: int, *_: object) -> None:
        if epoch == self._epoch:
            raise PowerCutError


class Watch(keras.callbacks.Callback):
    """Keeps the epochs (from 0) and the weights that each began and ended with."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: dict[int, list[Any]] = {}
        self.ended: dict[int, list[Any]] = {}

    def on_epoch_begin(self, epoch: int, *_: object) -> None:
        self.begun[epoch] = self.model.get_weights()

    def on_epoch_end(self, epoch: int, *_: object) -> None:
        self.ended[epoch] = self.model.get_weights()


ROWS = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
TARGETS = ROWS.sum(axis=1, keepdims=True)


def fit(
    folder: Path,
    *callbacks: keras.callbacks.Callback,
    epochs: int = 3,
    learning_rate: float = 1e-2,
    monitor: str | None = "val_loss",
    averaging: float | None = None,
) -> tuple[keras.Model, History]:
    """Fit a new linear model, with other first weights each time."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(
        keras.optimizers.Adam(learning_rate, use_ema=averaging is not None, ema_momentum=averaging or 0.9), "mse"
    )
    history = fitting.fit(
        model,
        _batches(),
        tiny_run(folder),
        epochs=epochs,
        validation=_batches(),
        monitor=monitor,
        callbacks=callbacks,
    )
    return model, history


def _batches() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((ROWS, TARGETS)).batch(16)


def test_it_goes_on_after_the_last_whole_epoch(tmp_path: Path):
    before, after = Watch(), Watch()
    with pytest.raises(PowerCutError):
        fit(tmp_path, before, Cut(1))
    first = fitting.read_history(tmp_path / "work" / "fit" / "log.jsonl")
    assert [row["epoch"] for row in first.rows] == [1]
    _, history = fit(tmp_path, after)
    assert list(after.begun) == [1, 2]
    for kept, restored in zip(before.ended[0], after.begun[1], strict=True):
        np.testing.assert_array_equal(kept, restored)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    assert history.rows[0] == first.rows[0]
    assert history.seconds >= first.seconds > 0


def test_it_ends_as_if_it_had_never_been_cut_off(tmp_path: Path):
    keras.utils.set_random_seed(5)
    whole, _ = fit(tmp_path / "whole")
    keras.utils.set_random_seed(5)
    with pytest.raises(PowerCutError):
        fit(tmp_path / "cut", Cut(2))
    resumed, _ = fit(tmp_path / "cut")  # Adam's moments come back with the weights
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_averaged_weights_survive_the_cut(tmp_path: Path):
    def averaged(folder: Path, *callbacks: keras.callbacks.Callback) -> tuple[keras.Model, History]:
        keras.utils.set_random_seed(5)
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        return fit(folder, swap, *callbacks, averaging=0.8)

    whole, expected = averaged(tmp_path / "whole")
    with pytest.raises(PowerCutError):
        averaged(tmp_path / "cut", Cut(2))
    resumed, found = averaged(tmp_path / "cut")
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    losses, expected_losses = ([row["val_loss"] for row in history.rows] for history in (found, expected))
    assert losses == pytest.approx(expected_losses, rel=1e-4)


def test_a_run_that_was_whole_is_not_trained_again(tmp_path: Path):
    trained, history = fit(tmp_path)
    again = Watch()
    restored, same = fit(tmp_path, again)
    assert again.begun == {}
    assert same == history
    for one, other in zip(trained.get_weights(), restored.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_best_epoch_is_kept_also_from_before_the_cut(tmp_path: Path):
    good = Watch()
    with pytest.raises(PowerCutError):
        fit(tmp_path, good, Cut(1), learning_rate=1e-3)

    class Spoil(keras.callbacks.Callback):
        """Makes every later epoch worse than the first."""

        def on_epoch_begin(self, *_: object) -> None:
            self.model.set_weights([weight + 10 for weight in self.model.get_weights()])

    model, history = fit(tmp_path, Spoil(), learning_rate=1e-3)
    losses = [row["val_loss"] for row in history.rows]
    assert min(losses) == losses[0]
    for kept, found in zip(good.ended[0], model.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, found)


def test_without_a_figure_to_choose_by_the_last_epoch_is_kept(tmp_path: Path):
    watch = Watch()
    model, _ = fit(tmp_path, watch, monitor=None)
    for kept, found in zip(watch.ended[2], model.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, found)


def test_of_an_epoch_logged_twice_the_later_line_counts(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"epoch": 1, "seconds": 2, "loss": 5}\n{"epoch": 1, "seconds": 3, "loss": 4}\n')
    assert fitting.read_history(log) == History(({"epoch": 1, "seconds": 3, "loss": 4},))
    assert fitting.read_history(tmp_path / "none") == History(())
