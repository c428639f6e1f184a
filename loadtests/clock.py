"""When requests are due, and being woken then: arrivals are as good as the clock that they go by."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Arrivals = Literal["constant", "poisson"]
_MONOTONIC, _NONBLOCK_CLOSE_ON_EXEC, _ABSOLUTE = 1, os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0), 1


def arrival_times(rate: float, seconds: float, arrivals: Arrivals = "constant", seed: int = 0) -> NDArray[np.float64]:
    """When each request is due.

    Args:
        rate: requests a second, above 0.
        seconds: length of the run.
        arrivals: evenly spaced, or a Poisson process (independent users).
        seed: of the Poisson process.

    Returns:
        (requests,) float64, ascending, seconds from the start in [0, ``seconds``).
    """
    if arrivals == "constant":
        return np.arange(np.ceil(rate * seconds), dtype=np.float64) / rate
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds + 10 * np.sqrt(rate * seconds) + 20))
    due = np.cumsum(gaps)
    return due[due < seconds]


class Alarm:
    """Calls back on an event loop at a set time of ``time.perf_counter``.

    Event loops keep their timers in milliseconds; Linux's timerfd wakes within some ten microseconds, so that a
    request's delay is the server's and not the generator's. Elsewhere the loop's own timer has to do.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None
        self._timer = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._timer = self._libc.timerfd_create(_MONOTONIC, _NONBLOCK_CLOSE_ON_EXEC)
        if self._timer >= 0:
            loop.add_reader(self._timer, self._ring)

    def set(self, when: float) -> None:
        """Ring at ``when``; at once if that is over."""
        if self._timer < 0:
            self._handle = self._loop.call_later(max(0.0, when - perf_counter()), self._callback)
            return
        # struct itimerspec: no interval, then the time itself. perf_counter is CLOCK_MONOTONIC on Linux.
        seconds, nanoseconds = divmod(max(int(when * 1e9), 1), 1_000_000_000)
        spec = (ctypes.c_long * 4)(0, 0, seconds, nanoseconds)
        if self._libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Never ring again."""
        if self._handle is not None:
            self._handle.cancel()
        if self._timer >= 0:
            self._loop.remove_reader(self._timer)
            os.close(self._timer)
            self._timer = -1

    def _ring(self) -> None:
        os.read(self._timer, 8)
        self._callback()
