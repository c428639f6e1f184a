"""Spans, sent to a real HTTP server that takes OTLP."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace as api
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.tracing import Trace, Tracer, parse_traceparent, parse_tracestate
from tests.conftest import ROOT, free_port, serve
from tests.serving import pictures

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01".encode()
STAGES = ("receive", "decode", "queue", "compute", "encode")


class Inbox:
    """An OTLP collector: what was posted, and how it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.seconds = 0.0  # before it answers
        self.open = threading.Event()
        self.open.set()
        self.paths: list[str] = []
        self.resources: list[ResourceSpans] = []
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                inbox.open.wait()
                time.sleep(inbox.seconds)
                status = inbox.status
                if status == 200:
                    assert self.headers["content-type"] == "application/x-protobuf"
                    inbox.resources += ExportTraceServiceRequest.FromString(body).resource_spans
                inbox.paths.append(self.path)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def spans(self) -> list[Span]:
        return [span for resource in self.resources for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    box = Inbox()
    thread = threading.Thread(target=box.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield box
    box.open.set()
    box.server.shutdown()
    box.server.server_close()
    thread.join()


@contextlib.contextmanager
def tracing(endpoint: str) -> Iterator[Tracer]:
    tracer = Tracer(endpoint)
    try:
        yield tracer
    finally:
        tracer.close()


def finish(trace: Trace | None, *, status: int = 200, method: str = "POST") -> None:
    """End a trace of five stages, 1 ms, 2 ms, … long, one after the other from the instant 100."""
    assert trace is not None
    start = 100.0
    for number, name in enumerate(STAGES, start=1):
        trace.stage(name, start, start + number / 1000, number=number)
        start += number / 1000
    trace.end(route="/v1/digit", method=method, status=status, start=100.0, end=start)


def attributes(span: Span | ResourceSpans) -> dict[str, str | int]:
    held = span.attributes if isinstance(span, Span) else span.resource.attributes
    return {item.key: item.value.string_value or item.value.int_value for item in held}


def until(reached: Callable[[], object]) -> None:
    """Wait for a condition; the test's own time limit ends a wait in vain."""
    while not reached():
        time.sleep(0.01)


def test_the_callers_trace_goes_on_in_the_requests_span(inbox: Inbox) -> None:
    with tracing(inbox.url) as tracer:
        finish(tracer.begin(TRACEPARENT, b"vendor=one, other@system=two"))
    [server] = [span for span in inbox.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert server.trace_id.hex() == TRACE_ID
    assert server.parent_span_id.hex() == PARENT_ID
    assert server.span_id.hex() not in (PARENT_ID, "0" * 16)
    assert server.trace_state == "vendor=one,other@system=two"
    assert server.name == "POST /v1/digit"
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/v1/digit",
        "http.response.status_code": 200,
    }
    assert server.status.code == Status.STATUS_CODE_UNSET
    assert server.end_time_unix_nano - server.start_time_unix_nano == pytest.approx(15e6, abs=1e3)


def test_stages_are_children_of_the_requests_span_in_order_and_as_long_as_told(inbox: Inbox) -> None:
    with tracing(inbox.url) as tracer:
        finish(tracer.begin(TRACEPARENT))
    [server] = [span for span in inbox.spans if span.kind == Span.SPAN_KIND_SERVER]
    stages = sorted((span for span in inbox.spans if span is not server), key=lambda span: span.start_time_unix_nano)
    stages = [span for span in stages if span.kind == Span.SPAN_KIND_INTERNAL]
    assert [span.name for span in stages] == list(STAGES)
    assert {span.parent_span_id for span in stages} == {server.span_id}
    assert {span.trace_id.hex() for span in stages} == {TRACE_ID}
    assert len({span.span_id for span in [server, *stages]}) == 6
    assert [attributes(span) for span in stages] == [{"number": number} for number in range(1, 6)]
    lengths = [span.end_time_unix_nano - span.start_time_unix_nano for span in stages]
    assert lengths == pytest.approx([1e6, 2e6, 3e6, 4e6, 5e6], abs=1e3)
    assert stages[0].start_time_unix_nano == server.start_time_unix_nano
    assert stages[-1].end_time_unix_nano == server.end_time_unix_nano


def test_times_are_those_of_the_wall_clock(inbox: Inbox) -> None:
    before = time.time_ns()
    with tracing(inbox.url) as tracer:
        trace = tracer.begin(TRACEPARENT)
        assert trace is not None
        start = time.perf_counter()
        trace.end(route="/v1/digit", method="POST", status=200, start=start, end=time.perf_counter())
    [span] = inbox.spans
    slack = 1_000_000  # the two clocks are read one after the other, and a float's seconds are rounded
    assert before - slack <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns() + slack


def test_the_resource_names_the_service(inbox: Inbox) -> None:
    tracer = Tracer(inbox.url, service="digits")
    finish(tracer.begin(TRACEPARENT))
    tracer.close()
    [resource] = inbox.resources
    assert attributes(resource)["service.name"] == "digits"


@pytest.mark.parametrize("header", [b"00-" + b"0" * 32 + b"-" + PARENT_ID.encode() + b"-01", b"", b"nonsense"])
@pytest.mark.parametrize("flags", [b"00", b"02", b"fe"])
def test_no_request_is_traced_without_a_valid_and_sampled_header(inbox: Inbox, header: bytes, flags: bytes) -> None:
    with tracing(inbox.url) as tracer:
        assert tracer.begin(header) is None
        assert tracer.begin(TRACEPARENT[:-2] + flags, b"vendor=one") is None
    assert inbox.paths == []


def test_a_trace_that_never_ends_is_not_sent(inbox: Inbox) -> None:
    with tracing(inbox.url) as tracer:
        trace = tracer.begin(TRACEPARENT)
        assert trace is not None
        trace.stage("decode", 1.0, 2.0)
    assert inbox.paths == []


@pytest.mark.parametrize(("status", "failed"), [(200, False), (404, False), (429, False), (500, True), (504, True)])
def test_the_servers_errors_mark_the_span(inbox: Inbox, status: int, failed: bool) -> None:
    with tracing(inbox.url) as tracer:
        finish(tracer.begin(TRACEPARENT), status=status)
    [server] = [span for span in inbox.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert (server.status.code == Status.STATUS_CODE_ERROR) is failed
    assert attributes(server).get("error.type") == (str(status) if failed else None)
    assert attributes(server)["http.response.status_code"] == status


def test_an_unknown_method_does_not_make_a_name_of_its_own(inbox: Inbox) -> None:
    with tracing(inbox.url) as tracer:
        finish(tracer.begin(TRACEPARENT), status=405, method="BREW")
    [server] = [span for span in inbox.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert server.name == "HTTP /v1/digit"
    assert attributes(server)["http.request.method"] == "_OTHER"
    assert attributes(server)["http.request.method_original"] == "BREW"


@pytest.mark.parametrize(
    ("base", "path"),
    [("", "/v1/traces"), ("/", "/v1/traces"), ("/otlp", "/otlp/v1/traces"), ("/v1/traces", "/v1/traces")],
)
def test_the_endpoint_is_a_base_address(inbox: Inbox, base: str, path: str) -> None:
    with tracing(inbox.url + base) as tracer:
        finish(tracer.begin(TRACEPARENT))
    assert inbox.paths == [path]


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:4318", "localhost:4318", "grpc://127.0.0.1:4317", "http://"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="such as http://127"):
        Tracer(endpoint)


def test_no_proxy_comes_between(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with tracing(inbox.url) as tracer:
        finish(tracer.begin(TRACEPARENT))
    assert len(inbox.spans) == 6


def test_what_others_do_with_opentelemetry_is_left_alone(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    provider = api.get_tracer_provider()
    exporters = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    with tracing(inbox.url) as tracer:
        finish(tracer.begin(TRACEPARENT))
        assert api.get_tracer_provider() is provider
        exporters.warning("of another exporter")
    assert "of another exporter" in caplog.messages
    assert exporters.filters == []


@pytest.mark.timeout(20)
def test_a_dead_collector_neither_raises_nor_holds_up_the_end_and_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with tracing(f"http://127.0.0.1:{free_port()}") as tracer:
        for _ in range(200):  # several batches
            finish(tracer.begin(TRACEPARENT))
    [line] = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert line.name == "sextant.tracing"
    assert "refused" in line.getMessage()
    assert tracer.begin(TRACEPARENT) is None


@pytest.mark.timeout(20)
def test_a_collector_that_never_answers_does_not_hold_up_the_end(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.open.clear()
    with tracing(inbox.url) as tracer:
        for _ in range(300):
            finish(tracer.begin(TRACEPARENT))
    assert len([record for record in caplog.records if record.levelno >= logging.INFO]) <= 1


def test_the_end_does_not_wait_for_a_collector_that_takes_its_time(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.seconds = 2.5
    with tracing(inbox.url) as tracer:
        for _ in range(340):  # four batches, ten seconds
            finish(tracer.begin(TRACEPARENT))
    assert len(inbox.paths) < 4
    until(lambda: not any(thread.name.startswith("OtelBatch") for thread in threading.enumerate()))
    [message] = caplog.messages
    assert "what was left" in message


def test_requests_go_untraced_while_the_collector_fails(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    inbox.status = 404
    with tracing(inbox.url) as tracer:
        for _ in range(100):  # more spans than a batch holds: sent at once
            finish(tracer.begin(TRACEPARENT))
        until(lambda: tracer.begin(TRACEPARENT) is None)
    [message] = caplog.messages
    assert "404" in message
    assert inbox.url in message


def test_a_collector_that_fails_again_and_again_is_one_line_and_one_when_it_is_back(
    inbox: Inbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.otlp._PAUSE_SECONDS", 0)
    caplog.set_level(logging.INFO, "sextant")
    inbox.status = 400
    with tracing(inbox.url) as tracer:
        for failures in (1, 2, 3):
            for _ in range(100):
                finish(tracer.begin(TRACEPARENT))
            until(lambda wanted=failures: len(inbox.paths) >= wanted)
        inbox.status = 200
        finish(tracer.begin(TRACEPARENT))
        until(lambda: len(caplog.messages) > 1)
    assert len(caplog.messages) == 2
    assert "400" in caplog.messages[0]
    assert "takes spans again" in caplog.messages[1]


def test_a_collector_that_is_too_slow_gets_fewer_traces_but_whole_ones(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.open.clear()
    with tracing(inbox.url) as tracer:
        for number in range(1, 2001):
            finish(tracer.begin(f"00-{number:032x}-{PARENT_ID}-01".encode()))
        inbox.open.set()
    sizes = Counter(span.trace_id for span in inbox.spans)
    assert set(sizes.values()) == {6}
    assert 300 < len(sizes) < 2000
    assert len(caplog.records) == 1
    assert "too slow" in caplog.text


def test_nothing_of_opentelemetry_is_imported_before_a_tracer_is_made() -> None:
    program = (
        "import sys, serving.tracing as t; packages = lambda: {n.split('.')[0] for n in sys.modules};"
        "t.parse_traceparent(b''); assert not packages() & {'opentelemetry', 'google', 'requests'}, packages();"
        "t.Tracer('http://127.0.0.1:1').close(); assert 'opentelemetry' in packages()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"00",
        TRACEPARENT.upper(),  # lower case only
        TRACEPARENT + b"-more",  # version 00 is complete
        TRACEPARENT + b"-",
        TRACEPARENT + b"\n",
        b"ff" + TRACEPARENT[2:],
        b"0" + TRACEPARENT[2:],
        b"00-" + b"0" * 32 + TRACEPARENT[35:],
        TRACEPARENT[:36] + b"0" * 16 + b"-01",
        TRACEPARENT[:-1],
        TRACEPARENT.replace(b"-", b"_"),
        TRACEPARENT + b"," + TRACEPARENT,  # the header twice
        b"cc" + TRACEPARENT[2:] + b"more",
        b"00-\xef\xbc\x94" + TRACEPARENT[4:],  # a digit, but no ASCII
    ],
)
def test_malformed_traceparent(header: bytes) -> None:
    assert parse_traceparent(header) is None


@pytest.mark.parametrize(
    "header", [TRACEPARENT, b" \t" + TRACEPARENT + b" ", b"cc" + TRACEPARENT[2:], b"fe" + TRACEPARENT[2:] + b"-more"]
)
def test_valid_traceparent(header: bytes) -> None:
    assert parse_traceparent(header) == (int(TRACE_ID, 16), int(PARENT_ID, 16), 1, ())


@pytest.mark.parametrize(
    ("header", "members"),
    [
        (b"", ()),
        (b"a=1,,b=2,\t", (("a", "1"), ("b", "2"))),
        (b"t1@sys=x y", (("t1@sys", "x y"),)),
        (b"a=1,a=2", ()),
        (b"A=1", ()),
        (b"a=1=2", ()),
        (b"a=", ()),
        (b"a=\xe9", ()),
        (b"a=" + b"x" * 257, ()),
        (b",".join(b"k%d=v" % number for number in range(33)), ()),
    ],
)
def test_tracestate(header: bytes, members: tuple[tuple[str, str], ...]) -> None:
    assert parse_tracestate(header) == members


HEX = st.text("0123456789abcdefA-", max_size=3)
PARENTS = st.one_of(
    st.from_regex(r"\A[ \t]?(00|01|fe|ff)-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?\Z"),
    st.builds("{}-{}{}-{}-{}".format, HEX, st.just(TRACE_ID[:-1]), HEX, st.just(PARENT_ID), HEX),
)
STATES = st.one_of(st.text(" a=,@1zA~", max_size=30), st.from_regex(r"\A([a-z0-9@]{1,16}=[!-~ ]{1,4},?){0,40}\Z"))


@given(parent=PARENTS, state=STATES)
def test_headers_are_read_as_opentelemetry_reads_them(parent: str, state: str) -> None:
    carrier = {"traceparent": parent, "tracestate": state}
    context = api.get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()
    read = parse_traceparent(parent.encode())
    assert (read is not None) is context.is_valid
    if read is not None:
        assert read[:3] == (context.trace_id, context.span_id, int(context.trace_flags))
        assert parse_tracestate(state.encode()) == tuple(context.trace_state.items())


def test_the_service_sends_the_stages_of_sampled_requests_alone(
    inbox: Inbox, small_models: Path, tmp_path: Path
) -> None:
    digit = pictures.mnist_like().tobytes()
    photo = pictures.photo(side=48).tobytes()
    with serve(
        small_models, tmp_path / "log.txt", otlp_endpoint=inbox.url, models="mnist_mlp,vgg16_transfer"
    ) as server:
        for path, content, headers in (
            ("/v1/digit", digit, {"traceparent": TRACEPARENT.decode()}),
            ("/v1/image", photo, {"traceparent": TRACEPARENT.decode()}),
            ("/v1/digit", b"short", {"traceparent": TRACEPARENT.decode()}),
            ("/v1/digit", digit, {"traceparent": TRACEPARENT.decode()[:-1] + "0"}),
            ("/v1/digit", digit, {}),
        ):
            server.post(path, content, "application/octet-stream", headers=headers)
    until(lambda: len(inbox.spans) >= 11)  # the server hands over what is left when it stops
    requests = [span for span in inbox.spans if span.parent_span_id.hex() == PARENT_ID]
    assert [(span.name, attributes(span)["http.response.status_code"]) for span in requests] == [
        ("POST /v1/digit", 200),
        ("POST /v1/image", 200),
        ("POST /v1/digit", 422),
    ]
    for request, stages in zip(requests, (4, 4, 0), strict=True):
        children = [span for span in inbox.spans if span.parent_span_id == request.span_id]
        names = [span.name for span in sorted(children, key=lambda span: span.start_time_unix_nano)]
        assert names == ["decode", "queue", "compute", "encode"][:stages]
        assert all(span.start_time_unix_nano >= request.start_time_unix_nano for span in children)
        assert all(span.end_time_unix_nano <= request.end_time_unix_nano for span in children)
