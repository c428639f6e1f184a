"""What a run of the generator found: every answer's times and status, and the figures made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BUSY_LIMIT = 0.9
"""Share of a core above which the generator, not the server, may have set the pace."""
LATE_LIMIT_SECONDS = 0.005
"""How late the latest 1 % of requests may be sent for an open-loop run to count."""
_TICK = 1e-9
"""Seconds, of the clock: a due time to which the run's start was added, and taken off again, may be short of its last
bits, and of the window that it begins."""
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


@dataclass(frozen=True)
class Result:
    """One run. Times are seconds since its start; the window leaves out the warm-up.

    Args:
        loop: how requests followed one another.
        window: (start, end) of what counts.
        due: (answers,) when each answered request should have been sent.
        sent: (answers,) when it was.
        done: (answers,) when its answer was whole.
        status: (answers,) int16 HTTP status.
        late: (requests,) seconds from when each was due to when it was sent or, where it took a new connection, to
            when that was begun: the generator's own delay, of requests without an answer too.
        errors: requests without an answer because of the connection, by reason.
        unanswered: requests without an answer when the grace after the run was over.
        missing_headers: answers without the header asked of their status.
        received_bytes: of all answers, heads included.
        connections: the most open at once.
        busy: share of a core that the generator used in the window.
    """

    loop: Literal["closed", "open"]
    window: tuple[float, float]
    due: Floats
    sent: Floats
    done: Floats
    status: NDArray[np.int16]
    late: Floats
    errors: Mapping[str, int]
    unanswered: int
    missing_headers: int
    received_bytes: int
    connections: int
    busy: float

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        """(answers,) whether the request was due in the window."""
        return self._between(self.due)

    @property
    def by_status(self) -> dict[int, int]:
        """Answers to requests of the window, by status."""
        return dict(sorted(Counter(self.status[self.counted].tolist()).items()))

    @property
    def requests_per_second(self) -> float:
        """Answers with a status of 2xx that were whole within the window, a second."""
        good = (self.status >= 200) & (self.status < 300)
        return float(np.sum(good & self._between(self.done))) / (self.window[1] - self.window[0])

    @property
    def answers_per_second(self) -> float:
        """Answers of any status that were whole within the window, a second."""
        return float(np.sum(self._between(self.done))) / (self.window[1] - self.window[0])

    @property
    def failed(self) -> int:
        """Requests of the window answered with another status than 2xx, or not at all."""
        refused = sum(count for status, count in self.by_status.items() if not 200 <= status < 300)
        return refused + sum(self.errors.values()) + self.unanswered

    @property
    def response_seconds(self) -> Floats:
        """(answers of the window,) from when the request was due: what a user waits."""
        return (self.done - self.due)[self.counted]

    @property
    def service_seconds(self) -> Floats:
        """(answers of the window,) from when the request was sent: what the server took."""
        return (self.done - self.sent)[self.counted]

    @property
    def generator_bound(self) -> bool:
        """Whether the generator's core was too full to tell how fast the server is."""
        return self.busy > BUSY_LIMIT

    @property
    def valid(self) -> bool:
        """Whether the requests went out as they were due."""
        return not self.late.size or float(np.percentile(self.late, 99)) <= LATE_LIMIT_SECONDS

    def summary(self) -> dict[str, Any]:
        """The figures, for JSON: latencies in milliseconds, None where there is no answer to measure."""
        return {
            "loop": self.loop,
            "seconds": round(self.window[1] - self.window[0], 3),
            "connections": self.connections,
            "requests_per_second": round(self.requests_per_second, 2),
            "answers_per_second": round(self.answers_per_second, 2),
            "status": {str(status): count for status, count in self.by_status.items()},
            "errors": dict(self.errors),
            "unanswered": self.unanswered,
            "missing_headers": self.missing_headers,
            "received_bytes": self.received_bytes,
            "response_ms": milliseconds(self.response_seconds),
            "service_ms": milliseconds(self.service_seconds),
            "sent_late_ms": milliseconds(self.late),
            "generator_busy": round(self.busy, 3),
            "generator_bound": self.generator_bound,
            "valid": self.valid,
        }

    def line(self) -> str:
        """The figures in one line."""
        times = milliseconds(self.response_seconds)
        latency = ", ".join(f"{name} {value}" for name, value in times.items())
        answers = ", ".join(f"{count} × {status}" for status, count in self.by_status.items()) or "no answer"
        errors = "".join(f", {count} {reason}" for reason, count in self.errors.items())
        late = f"; sent late p99 {milliseconds(self.late)['p99']} ms" if self.loop == "open" else ""
        verdict = "" if self.valid else "; INVALID: requests were not sent when due"
        verdict += "; GENERATOR-BOUND" if self.generator_bound else ""
        return (
            f"{self.requests_per_second:.0f} requests/s; ms {latency}; {answers}{errors}, {self.unanswered} unanswered"
            f"; generator {self.busy:.0%} busy{late}{verdict}"
        )

    def _between(self, times: Floats) -> NDArray[np.bool_]:
        start, end = (edge - _TICK for edge in self.window)
        return (times >= start) & (times < end)


def milliseconds(seconds: Floats) -> dict[str, float | None]:
    """The percentiles of (n,) ``seconds`` in milliseconds, each None when there are none."""
    if not seconds.size:
        return dict.fromkeys(PERCENTILES)
    values = np.percentile(seconds, list(PERCENTILES.values())) * 1000
    return {name: round(float(value), 3) for name, value in zip(PERCENTILES, values, strict=True)}
