"""Spans for requests that carry a sampled ``traceparent``; nothing for the others.

The header is read as W3C Trace Context says (https://www.w3.org/TR/trace-context-2/). During the request a stage
costs one tuple; its spans are made at the end and sent by a thread. OpenTelemetry is imported when a
:class:`Tracer` is made: who sends no spans does not pay its memory.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from serving.otlp import Collector

_SAMPLED = 1
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY = r"[a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13}"
_VALUE = r"[ -+\--<>-~]{0,255}[!-+\--<>-~]"  # printable ASCII without comma and equals sign, no space at the end
_MEMBER = re.compile(f"({_KEY})=({_VALUE})")
_MAX_MEMBERS = 32
_MAX_STATE_CHARACTERS = 8192
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})


class Parent(NamedTuple):
    """The caller's span.

    Attributes:
        trace_id: 128 bits, not 0.
        span_id: 64 bits, not 0.
        flags: 8 bits, the lowest says sampled.
        state: key and value pairs of ``tracestate``.
    """

    trace_id: int
    span_id: int
    flags: int
    state: tuple[tuple[str, str], ...] = ()


class Span(NamedTuple):
    """What took how long.

    Attributes:
        start: seconds on ``time.perf_counter()``.
        end: likewise.
    """

    name: str
    start: float
    end: float
    attributes: dict[str, str | int | float]


class Tracer:
    """Sends spans to an OTLP/HTTP collector.

    A collector that is away costs requests nothing: after a failure none is traced for half a minute, then it is
    tried again; the log has one line when it goes and one when it is back.

    Args:
        endpoint: base URL, for example ``http://127.0.0.1:4318``; ``/v1/traces`` is added, as the OTLP specification
            says.
        service: ``service.name`` of the spans.

    Raises:
        ValueError: the endpoint is no ``http`` or ``https`` URL.
    """

    def __init__(self, endpoint: str, *, service: str = "sextant") -> None:
        # 7 MB and 0.1 s that a server without tracing keeps.
        from serving.otlp import Collector  # noqa: PLC0415

        self._collector = Collector(endpoint, service)

    def begin(self, traceparent: bytes, tracestate: bytes = b"") -> Trace | None:
        """Start the trace of a request.

        Args:
            traceparent: value of the header; several of them joined by commas are malformed, as the standard wants.
            tracestate: value of the header, several joined by commas. A malformed one counts as absent.

        Returns:
            None unless ``traceparent`` is valid and sampled, and the collector takes spans.
        """
        parent = parse_traceparent(traceparent)
        if parent is None or not parent.flags & _SAMPLED or not self._collector.listening:
            return None
        return Trace(self._collector, parent._replace(state=parse_tracestate(tracestate)) if tracestate else parent)

    def close(self) -> None:
        """Send what is left and stop, within a few seconds whatever the collector does. Blocks."""
        self._collector.close()


class Trace:
    """One request on its way. Nothing is sent of one that is never ended."""

    __slots__ = ("_collector", "_parent", "_stages")

    def __init__(self, collector: Collector, parent: Parent) -> None:
        self._collector = collector
        self._parent = parent
        self._stages: list[Span] = []

    def stage(self, name: str, start: float, end: float, **attributes: str | float) -> None:
        """Add a child of the request's span.

        Args:
            start: seconds on ``time.perf_counter()``.
            end: likewise.
            attributes: what to say of it.
        """
        self._stages.append(Span(name, start, end, attributes))

    def end(self, *, route: str, method: str, status: int, start: float, end: float) -> None:
        """Hand the request's span and its stages over, named as OpenTelemetry's HTTP conventions say.

        Args:
            route: the template, not the path.
            method: as received.
            status: of the response; 500 and above mark the span as an error.
            start: seconds on ``time.perf_counter()``.
            end: likewise.
        """
        known = method in _METHODS
        attributes: dict[str, str | int | float] = {
            "http.request.method": method if known else "_OTHER",
            "http.route": route,
            "http.response.status_code": status,
        }
        if not known:
            attributes["http.request.method_original"] = method
        error = status >= 500
        if error:
            attributes["error.type"] = str(status)
        request = Span(f"{method if known else 'HTTP'} {route}", start, end, attributes)
        self._collector.send(self._parent, request, self._stages, error=error)


current_trace: ContextVar[Trace | None] = ContextVar("current_trace", default=None)
"""The trace of the request that the current task answers."""


def parse_traceparent(header: bytes) -> Parent | None:
    """Read ``traceparent``: version, trace, span and flags in lower-case hexadecimal.

    Returns:
        None when malformed. A version above 00 may add fields, which are passed over; ff is invalid.
    """
    match = _TRACEPARENT.fullmatch(header.strip(b" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    parent = Parent(int(trace_id, 16), int(span_id, 16), int(flags, 16))
    return parent if parent.trace_id and parent.span_id else None


def parse_tracestate(header: bytes) -> tuple[tuple[str, str], ...]:
    """Read ``tracestate``, at most 32 ``key=value`` members separated by commas.

    OpenTelemetry's own reader says the same of the same headers, but logs a warning for each that a client got
    wrong.

    Returns:
        The members in order; none when any is malformed or appears twice.
    """
    if len(header) > _MAX_STATE_CHARACTERS:
        return ()
    members: dict[str, str] = {}
    for text in header.decode("latin-1").split(","):
        member = text.strip(" \t")
        if not member:
            continue
        match = _MEMBER.fullmatch(member)
        if match is None or match[1] in members or len(members) == _MAX_MEMBERS:
            return ()
        members[match[1]] = match[2]
    return tuple(members.items())
