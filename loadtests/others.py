"""What else the machine does while something is measured on it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import psutil


class Others:
    """Processor time that is neither ours nor idle, while the block runs.

    Ours is that of this process, of children that have ended, and of the service under load. What remains are other
    programs here, and, as "steal", other machines on the same hardware.

    Args:
        service: gives the processes of the service; None when they are not known, and so nothing can be told.

    Attributes:
        cores: that others took on average; known when the block has ended, 0 when it cannot be.
    """

    def __init__(self, service: Callable[[], Sequence[psutil.Process]] | None) -> None:
        self._service = service
        self.cores = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        self._before = self._measure()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End."""
        busy, ours, wall = (after - before for after, before in zip(self._measure(), self._before, strict=True))
        if self._service is not None:
            self.cores = max(0.0, (busy - ours) / wall)

    def _measure(self) -> tuple[float, float, float]:
        """Seconds of processor time of all, of ours, and by the clock."""
        machine = psutil.cpu_times()._asdict()  # guests' time is in user's too
        busy = sum(machine.get(kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
        own = os.times()
        ours = own.user + own.system + own.children_user + own.children_system
        for process in self._service() if self._service else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                ours += times.user + times.system + times.children_user + times.children_system
        return busy, ours, time.monotonic()
