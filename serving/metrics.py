"""Prometheus metrics, right across workers.

BentoML's supervisor sets ``PROMETHEUS_MULTIPROC_DIR`` for its workers, so that ``prometheus_client`` keeps
every value in a file per process and BentoML's ``/metrics`` adds them up, whichever worker answers it.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Every metric of a worker; made once a process.

    Args:
        registry: where the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._requests = Counter("sextant_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._refusals = Counter(
            "sextant_refusals", "Requests refused with 429.", ["route", "reason"], registry=registry
        )
        self._stage = Histogram(
            "sextant_stage_seconds",
            "Seconds of a request in decode (preprocessing included) and encode.",
            ["route", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "sextant_queue_seconds",
            "Seconds from queue to run.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
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
            "sextant_queue_rows",
            "Rows waiting now.",
            ["model"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._models = Gauge(
            "sextant_model_info",
            "1 for every model version found, with its state.",
            ["model", "version", "state"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        # A labelled child takes a lock and a look-up to find; there are few, so each is found once.
        self._answered: dict[tuple[str, int], Counter] = {}
        self._stages: dict[str, tuple[Histogram, Histogram]] = {}

    def answered(self, route: str, status: int) -> None:
        """Count one reply."""
        child = self._answered.get((route, status))
        if child is None:
            child = self._answered[route, status] = self._requests.labels(route, str(status))
        child.inc()

    def refused(self, route: str, reason: str) -> None:
        """Count one refusal."""
        self._refusals.labels(route, reason).inc()

    def decoded_and_encoded(self, route: str, decode: float, encode: float) -> None:
        """Observe the seconds that an answered request took on either side of the model."""
        children = self._stages.get(route)
        if children is None:
            children = self._stages[route] = (
                self._stage.labels(route, "decode"),
                self._stage.labels(route, "encode"),
            )
        children[0].observe(decode)
        children[1].observe(encode)

    def model_state(self, model: str, version: str, state: str) -> None:
        """Say that a model version was found, and in which state."""
        self._models.labels(model, version, state).set(1)

    def batches(self, model: str) -> BatchMetrics:
        """Return what the batcher of ``model`` reports to."""
        return BatchMetrics(self, model)


class BatchMetrics:
    """The metrics of one model's batcher, its label already bound."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._queue = metrics._queue.labels(model)  # noqa: SLF001 (one unit with Metrics)
        self._compute = metrics._compute.labels(model)  # noqa: SLF001
        self._rows = metrics._batch.labels(model)  # noqa: SLF001
        self._waiting = metrics._waiting.labels(model)  # noqa: SLF001
        self._releases = {
            reason: metrics._releases.labels(model, reason)  # noqa: SLF001
            for reason in ("full", "idle", "delay", "alone")
        }

    def waiting(self, rows: int) -> None:
        """Say how many rows wait now."""
        self._waiting.set(rows)

    def released(self, reason: str, rows: int, queued: Sequence[float]) -> None:
        """Count a batch let go for ``reason``, of requests that were ``queued`` for so many seconds."""
        self._releases[reason].inc()
        self._rows.observe(rows)
        for seconds in queued:
            self._queue.observe(seconds)

    def computed(self, seconds: float) -> None:
        """Observe how long a batch ran."""
        self._compute.observe(seconds)
