"""A served model: its manifest, its session and its batcher behind one call."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from serving.batching import Batcher, BatchObserver, Profile, Rows
from serving.manifest import Manifest
from serving.preprocessing.text import Encoder
from serving.session import Session
from serving.settings import Settings


class Predictor:
    """Answers rows with one model.

    Args:
        manifest: the model's.
        session: its loaded graph.
        profile: what a batch costs.
        encoder: the text encoder, for models that take text.
        observer: told of every batch.
        settings: batch and queue limits.
    """

    def __init__(
        self,
        manifest: Manifest,
        session: Session,
        profile: Profile,
        encoder: Encoder | None,
        observer: BatchObserver,
        settings: Settings,
    ) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.profile = profile
        self._executor = ThreadPoolExecutor(1, f"run-{manifest.model}")  # its thread starts when it is needed
        self._batcher = Batcher(
            session.run,
            observer,
            profile,
            queue_rows=settings.max_queue_rows,
            executor=self._executor,
            ragged=next((tensor.name for tensor in manifest.inputs if _is_ragged(tensor.shape)), None),
            delay=settings.batch_delay_ms / 1000,
        )

    @property
    def inline(self) -> bool:
        """Whether an answer comes without waiting for a thread."""
        return self.profile.inline

    @property
    def dead(self) -> str:
        """Why the model cannot answer any more; empty while all is well."""
        return self._batcher.dead

    def predict(self, inputs: Rows, deadline: float) -> Coroutine[Any, Any, Rows]:
        """Answer any number of rows, in batches shared with whoever asks at the same time.

        Raises:
            OverloadedError, DeadlineError, UnavailableError: as `Batcher.submit`.
        """
        return self.predict_pieces(split(inputs, self.profile.batch_size), deadline)

    async def predict_pieces(self, pieces: Sequence[Rows], deadline: float, *, alone: bool = False) -> Rows:
        """As `predict`, of rows that do not stack: each piece has rows of one length.

        Args:
            pieces: the inputs, each of at most the profile's batch size.
            deadline: on the monotonic clock.
            alone: share no batch, so that the same input always gives the very same bits.
        """
        outputs = await self._batcher.submit(pieces, deadline, alone=alone)
        if len(outputs) == 1:
            return outputs[0]
        return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}

    def close(self) -> None:
        """Refuse what waits and let the thread end."""
        self._batcher.close("the server is shutting down")
        self._executor.shutdown(wait=False, cancel_futures=True)


def split(inputs: Rows, size: int) -> list[Rows]:
    """Cut rows into pieces of ``size``, the last maybe smaller."""
    rows = len(next(iter(inputs.values())))
    if rows <= size:
        return [inputs]
    return [{name: array[start : start + size] for name, array in inputs.items()} for start in range(0, rows, size)]


def _is_ragged(shape: tuple[int | None, ...]) -> bool:
    return None in shape[1:]
