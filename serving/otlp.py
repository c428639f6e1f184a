"""OpenTelemetry's side of tracing: spans, queue, exporter. Imported only by a :class:`serving.tracing.Tracer`."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from serving.tracing import Parent, Span

logger = logging.getLogger("sextant.tracing")

_QUEUE_SPANS = 2048
_BATCH_SPANS = 512
_DELAY_SECONDS = 2  # from a span's end to its sending, at most
_EXPORT_SECONDS = 3  # for one batch, retries included
_PAUSE_SECONDS = 30
_CLOSE_SECONDS = 4

_ERROR = Status(StatusCode.ERROR)
_FINE = Status(StatusCode.UNSET)


class Collector:
    """Makes spans of finished requests, queues them and sends them from a thread.

    The spans are built directly, without a ``TracerProvider``: its sampler, limits and locks are for spans that are
    open while others run, and cost 95 µs for a request with five stages where this costs 25.

    Args:
        endpoint: base URL of the collector, without or with ``/v1/traces``.
        service: ``service.name`` of the spans.

    Raises:
        ValueError: the endpoint is no ``http`` or ``https`` URL.
    """

    def __init__(self, endpoint: str, service: str) -> None:
        self._exporter = _Exporter(_traces_url(endpoint))
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=_QUEUE_SPANS,
            schedule_delay_millis=_DELAY_SECONDS * 1000,
            max_export_batch_size=_BATCH_SPANS,
            export_timeout_millis=_EXPORT_SECONDS * 1000,
        )
        self._resource = Resource(
            {
                "service.name": service,
                "process.pid": os.getpid(),
                "telemetry.sdk.language": "python",
                "telemetry.sdk.name": "opentelemetry",
                "telemetry.sdk.version": version("opentelemetry-sdk"),
            }
        )
        self._scope = InstrumentationScope("sextant")
        self._new_span_id = RandomIdGenerator().generate_span_id
        self._queued = 0

    @property
    def listening(self) -> bool:
        """Whether spans are worth recording now."""
        return time.monotonic() >= self._exporter.paused_until

    def send(self, parent: Parent, request: Span, stages: Sequence[Span], *, error: bool) -> None:
        """Queue a request's span and its stages, or none of them when the queue has no room for all."""
        count = len(stages) + 1
        if self._queued - self._exporter.taken + count > _QUEUE_SPANS:
            self._exporter.lose(f"is too slow, {_QUEUE_SPANS} spans wait")
            return
        self._queued += count
        epoch = time.time_ns() - time.perf_counter_ns()
        flags, state = TraceFlags(parent.flags), TraceState(parent.state)
        remote = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags, trace_state=state)

        def queue(span: Span, above: SpanContext, kind: SpanKind, status: Status) -> SpanContext:
            context = SpanContext(
                parent.trace_id, self._new_span_id(), is_remote=False, trace_flags=flags, trace_state=state
            )
            self._processor.on_end(
                ReadableSpan(
                    span.name,
                    context,
                    above,
                    self._resource,
                    span.attributes,
                    kind=kind,
                    status=status,
                    start_time=epoch + int(span.start * 1e9),
                    end_time=epoch + int(span.end * 1e9),
                    instrumentation_scope=self._scope,
                )
            )
            return context

        server = queue(request, remote, SpanKind.SERVER, _ERROR if error else _FINE)
        for stage in stages:
            queue(stage, server, SpanKind.INTERNAL, _FINE)

    def close(self) -> None:
        """Send what is queued and stop, within ``_CLOSE_SECONDS``."""
        self._exporter.paused_until = math.inf
        # The processor itself would wait for half a minute; a daemon, so that it keeps no process alive.
        closing = threading.Thread(target=self._processor.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)
        if closing.is_alive():
            self._exporter.lose(f"did not take what was left within {_CLOSE_SECONDS} s")
        self._exporter.shutdown()


class _Exporter(SpanExporter):
    """The OTLP exporter, with one line in the log where it would write several for every batch.

    Args:
        url: where spans are posted.

    Attributes:
        taken: spans taken from the queue so far.
        paused_until: when to record spans again, on ``time.monotonic()``.
    """

    def __init__(self, url: str) -> None:
        session = requests.Session()
        session.trust_env = False  # no proxy and no .netrc for a collector that was named
        self._otlp = OTLPSpanExporter(
            url, timeout=_EXPORT_SECONDS, compression=Compression.NoCompression, session=session
        )
        self._url = url
        self._log = logging.getLogger(OTLPSpanExporter.__module__)
        self._log.addFilter(self._overhear)
        self._thread: int | None = None
        self._reason = ""
        self._failing = False
        self._told = False
        self._tell_again = 0.0
        self._stopped = False
        self.taken = 0
        self.paused_until = 0.0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; called by the processor's thread."""
        self.taken += len(spans)
        # While all is being closed, one failure is enough.
        if self._stopped or (self._failing and self.paused_until == math.inf):
            return SpanExportResult.FAILURE
        self._reason, self._thread = "", threading.get_ident()
        try:
            result = self._otlp.export(spans)
        finally:
            self._thread = None
            if self._stopped:
                self._log.removeFilter(self._overhear)
        self._failing = result is not SpanExportResult.SUCCESS
        if self._failing:
            # Never earlier: a batch that fails while all is being closed must not open it again.
            self.paused_until = max(self.paused_until, time.monotonic() + _PAUSE_SECONDS)
            self.lose(f"fails, to be tried again every {_PAUSE_SECONDS} s ({self._reason or 'no answer'})")
        elif self._told and time.monotonic() >= self._tell_again:
            self._told = False
            logger.info("The collector at %s takes spans again.", self._url)
        return result

    def lose(self, reason: str) -> None:
        """Say that traces are lost, once until all has been well for a while."""
        self._tell_again = time.monotonic() + _PAUSE_SECONDS
        if not self._told and not self._stopped:
            self._told = True
            logger.warning("Traces are lost: the collector at %s %s.", self._url, reason)

    def shutdown(self) -> None:
        """Stop, in the middle of a retry too; called by the processor and, should that hang, by the collector."""
        if not self._stopped:
            self._stopped = True
            self._otlp.shutdown()  # type: ignore[no-untyped-call]
            if self._thread is None:
                self._log.removeFilter(self._overhear)

    def _overhear(self, record: logging.LogRecord) -> bool:
        """Keep the first thing that the exporter says of a batch of ours; let others' pass."""
        if threading.get_ident() != self._thread:
            return True
        self._reason = self._reason or record.getMessage()
        return False


def _traces_url(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"The collector's endpoint must be a URL such as http://127.0.0.1:4318; received {endpoint!r}."
        )
    return endpoint.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
