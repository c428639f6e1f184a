"""Prometheus metrics, right across workers, at about a microsecond a request.

BentoML's supervisor sets ``PROMETHEUS_MULTIPROC_DIR`` for its workers, so that ``prometheus_client`` keeps
every value in a file per process and BentoML's ``/metrics`` adds them up, whichever worker answers it. Writing
there takes a lock and a look at the process id, 4 µs an observation and a dozen observations a request. So a
worker counts in plain numbers, and hands them over once a second and whenever it is asked for ``/metrics``.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, multiprocess

from serving.batching import BatchObserver

_SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_REASONS = ("full", "idle", "delay", "alone")
_STATUSES = (200, 429, 500, 503, 504)
_REFUSALS = ("requests", "queue", "deadline")


class _Pending(Protocol):
    """Numbers not yet handed over."""

    def flush(self) -> None: ...


PendingT = TypeVar("PendingT", bound=_Pending)


class _Count:
    """Increments of one counter."""

    __slots__ = ("_child", "_count")

    def __init__(self, child: Counter) -> None:
        self._child = child
        self._count = 0

    def inc(self) -> None:
        self._count += 1

    def flush(self) -> None:
        if self._count:
            self._child.inc(self._count)
            self._count = 0


class _Tally:
    """Observations of one histogram."""

    __slots__ = ("_bounds", "_child", "_counts", "_sum")

    def __init__(self, child: Histogram, bounds: Sequence[float]) -> None:
        # The child has no public way to take many observations at once.
        self._child: Any = child
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        if not any(self._counts):
            return
        for index, count in enumerate(self._counts):
            if count:
                self._child._buckets[index].inc(count)  # noqa: SLF001 (see above)
                self._counts[index] = 0
        self._child._sum.inc(self._sum)  # noqa: SLF001
        self._sum = 0.0


class _Level:
    """The last value of one gauge."""

    __slots__ = ("_child", "value")

    def __init__(self, child: Gauge) -> None:
        self._child = child
        self.value = 0.0

    def flush(self) -> None:
        self._child.set(self.value)


class Metrics:
    """Every metric of a worker; made once a process, used on its event loop.

    Args:
        registry: where the metrics are registered.
        folder: in which ``prometheus_client`` keeps the values of every worker; None for one alone.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, folder: str | None = None) -> None:
        workers = Gauge(
            "sextant_workers",
            "Workers, a dead one until it is replaced.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        workers.set(1)
        deaths = Counter("sextant_worker_deaths", "Workers that died without having been told to.", registry=registry)
        deaths.inc(0 if folder is None else bury_dead_workers(Path(folder)))
        self._requests = Counter("sextant_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._refusals = Counter(
            "sextant_refusals", "Requests refused with 429.", ["route", "reason"], registry=registry
        )
        self._seconds = Histogram(
            "sextant_request_seconds",
            "Seconds from the head of a prediction request to its answer, whatever it was.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage = Histogram(
            "sextant_stage_seconds",
            "Seconds of a request in decode (preprocessing included) and encode.",
            ["route", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "sextant_queue_seconds", "Seconds from queue to run.", ["model"], buckets=_SECONDS, registry=registry
        )
        self._compute = Histogram(
            "sextant_compute_seconds", "Seconds a batch ran.", ["model"], buckets=_SECONDS, registry=registry
        )
        self._batch = Histogram("sextant_batch_rows", "Rows run at once.", ["model"], buckets=_ROWS, registry=registry)
        self._releases = Counter(
            "sextant_batches",
            "Batches run, by why they were released.",
            ["model", "reason"],
            registry=registry,
        )
        self._waiting = Gauge(
            "sextant_queue_rows", "Rows waiting now.", ["model"], registry=registry, multiprocess_mode="livesum"
        )
        self._models = Gauge(
            "sextant_model_info",
            "1 for every model version found, with its state.",
            ["model", "version", "state"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._pending: list[_Pending] = []
        self._answered: dict[tuple[str, int], _Count] = {}
        self._refused: dict[tuple[str, str], _Count] = {}
        self._routes: dict[str, tuple[_Tally, _Tally, _Tally]] = {}

    def flush(self) -> None:
        """Hand the numbers over to ``prometheus_client``."""
        for pending in self._pending:
            pending.flush()

    def expect(self, route: str) -> None:
        """Begin the counts of a route's troubles at 0: in what begins with 1, Prometheus sees no rise."""
        for status in _STATUSES:
            self._answers(route, status)
        for reason in _REFUSALS:
            self._refusals_of(route, reason)

    def answered(self, route: str, status: int, seconds: float | None = None) -> None:
        """Count one reply, and for a prediction how long it took."""
        self._answers(route, status).inc()
        if seconds is not None:
            self._route(route)[0].observe(seconds)

    def refused(self, route: str, reason: str) -> None:
        """Count one refusal."""
        self._refusals_of(route, reason).inc()

    def decoded_and_encoded(self, route: str, decode: float, encode: float) -> None:
        """Observe the seconds that an answered request took on either side of the model."""
        _, decoded, encoded = self._route(route)
        decoded.observe(decode)
        encoded.observe(encode)

    def model_state(self, model: str, version: str, state: str) -> None:
        """Say that a model version was found, and in which state."""
        self._models.labels(model, version, state).set(1)

    def batches(self, model: str) -> BatchMetrics:
        """Return what the batcher of ``model`` reports to."""
        return BatchMetrics(
            queue=self._keep(_Tally(self._queue.labels(model), _SECONDS)),
            compute=self._keep(_Tally(self._compute.labels(model), _SECONDS)),
            rows=self._keep(_Tally(self._batch.labels(model), _ROWS)),
            waiting=self._keep(_Level(self._waiting.labels(model))),
            releases={reason: self._keep(_Count(self._releases.labels(model, reason))) for reason in _REASONS},
        )

    def _answers(self, route: str, status: int) -> _Count:
        count = self._answered.get((route, status))
        if count is None:
            count = self._answered[route, status] = self._keep(_Count(self._requests.labels(route, str(status))))
        return count

    def _refusals_of(self, route: str, reason: str) -> _Count:
        count = self._refused.get((route, reason))
        if count is None:
            count = self._refused[route, reason] = self._keep(_Count(self._refusals.labels(route, reason)))
        return count

    def _route(self, route: str) -> tuple[_Tally, _Tally, _Tally]:
        tallies = self._routes.get(route)
        if tallies is None:
            children = (
                self._seconds.labels(route),
                self._stage.labels(route, "decode"),
                self._stage.labels(route, "encode"),
            )
            seconds, decode, encode = (self._keep(_Tally(child, _SECONDS)) for child in children)
            tallies = self._routes[route] = (seconds, decode, encode)
        return tallies

    def _keep(self, pending: PendingT) -> PendingT:
        self._pending.append(pending)
        return pending


def bury_dead_workers(folder: Path) -> int:
    """Take what dead workers counted as theirs at the moment, such as rows in a queue, out of the sums.

    Nobody does that for a worker that was killed, so the one that takes its place does.

    Args:
        folder: in which ``prometheus_client`` keeps the values of every worker.

    Returns:
        How many workers were found dead that nobody else has buried.
    """
    buried = 0
    for file in folder.glob("gauge_livesum_*.db"):
        process = file.stem.rpartition("_")[2]
        if psutil.pid_exists(int(process)):
            continue
        with contextlib.suppress(FileNotFoundError):  # another worker, that starts at the same time, was quicker
            file.unlink()
            buried += 1
        multiprocess.mark_process_dead(process, str(folder))  # type: ignore[no-untyped-call]
    return buried


class BatchMetrics(BatchObserver):
    """The metrics of one model's batcher."""

    def __init__(
        self, *, queue: _Tally, compute: _Tally, rows: _Tally, waiting: _Level, releases: dict[str, _Count]
    ) -> None:
        self._queue, self._compute, self._rows = queue, compute, rows
        self._waiting, self._releases = waiting, releases

    def waiting(self, rows: int) -> None:
        """Say how many rows wait now."""
        self._waiting.value = rows

    def released(self, reason: str, rows: int, queued: Sequence[float]) -> None:
        """Count a batch let go for ``reason``, of requests that were ``queued`` for so many seconds."""
        self._releases[reason].inc()
        self._rows.observe(rows)
        for seconds in queued:
            self._queue.observe(seconds)

    def computed(self, seconds: float) -> None:
        """Observe how long a batch ran."""
        self._compute.observe(seconds)
