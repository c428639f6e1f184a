"""The load generator against real servers: its counts, its two loops, and what it makes of servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from loadtests.clock import Alarm, arrival_times
from loadtests.generator import closed_loop, main, open_loop
from loadtests.result import Result
from loadtests.wire import AddressError, encode, local_address
from tests.conftest import free_port
from tests.loadtests.servers import OK, answering, listening, request

TEAPOT = b"HTTP/1.1 418 no\r\nContent-Length: 0\r\n\r\n"


def closed(url: str, *, connections: int = 4, seconds: float = 0.3, grace: float = 5.0, **more: object) -> Result:
    address, path = local_address(url)
    message = encode(address, "POST", path, b"abc", "text/plain")
    return closed_loop(address, [message], connections=connections, seconds=seconds, grace=grace, **more)  # type: ignore[arg-type]


def opened(url: str, *, rate: float = 200, seconds: float = 0.5, **more: object) -> Result:
    address, path = local_address(url)
    return open_loop(address, [encode(address, "GET", path)], arrival_times(rate, seconds), **more)  # type: ignore[arg-type]


def test_every_request_a_server_saw_is_counted_and_carries_what_was_asked():
    seen: list[tuple[bytes, bytes]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await request(reader))
            writer.write(OK)

    with listening(handle) as url:
        result = closed(url + "/v1/x?y=1")
    assert result.by_status.keys() == {200}
    assert result.unanswered == 0
    assert not result.errors
    assert len(result.done) == len(seen) > 20
    assert result.connections == 4
    assert result.received_bytes == len(seen) * len(OK)
    assert set(seen) == {
        (
            f"POST /v1/x?y=1 HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\n"
            "Content-Type: text/plain\r\nContent-Length: 3\r\n\r\n".encode(),
            b"abc",
        )
    }


def test_different_bodies_are_sent_in_turn():
    bodies: Counter[bytes] = Counter()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            bodies[(await request(reader))[1]] += 1
            writer.write(OK)

    with listening(handle) as url:
        address, path = local_address(url)
        messages = [encode(address, "POST", path, body, "text/plain") for body in (b"a", b"b", b"c")]
        open_loop(address, messages, arrival_times(300, 0.3))
    assert bodies == {b"a": 30, b"b": 30, b"c": 30}


def test_answers_are_counted_by_status_and_only_good_ones_make_the_rate():
    with listening(answering(OK, OK, TEAPOT)) as url:
        result = opened(url, rate=300)
    assert result.by_status == {200: 100, 418: 50}
    assert result.failed == 50
    assert result.requests_per_second == pytest.approx(result.answers_per_second * 2 / 3, rel=0.05)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\n\r\n\r\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nTrailer: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
    ids=["chunked", "trailers", "close", "close-delimited", "http/1.0", "interim", "no content"],
)
@pytest.mark.parametrize("pieces", [1, 1000], ids=["at once", "byte by byte"])
def test_every_way_to_end_an_answer_is_understood(answer: bytes, pieces: int):
    size = -(-len(answer) // pieces)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            for start in range(0, len(answer), size):
                writer.write(answer[start : start + size])
                await writer.drain()
                if size == 1:
                    await asyncio.sleep(0)
            if b"close" in answer or b"HTTP/1.0" in answer:
                return

    with listening(handle) as url:
        result = opened(url, rate=100, seconds=0.2)
        again = closed(url, seconds=0.2)
    assert len(result.done) == 20
    assert len(again.done) > 4  # more than a connection each: they are used or opened again
    assert not result.errors
    assert not again.errors
    assert result.unanswered == again.unanswered == 0


def test_a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one():
    def stalling() -> object:
        begun = time.monotonic()
        stalled = False

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal stalled
            while True:
                await request(reader)
                if not stalled and time.monotonic() - begun > 0.5:
                    stalled = True
                    time.sleep(1)  # noqa: ASYNC251 (nobody is served meanwhile)
                writer.write(OK)

        return handle

    with listening(stalling()) as url:  # type: ignore[arg-type]
        by_clock = opened(url, rate=500, seconds=4)
    with listening(stalling()) as url:  # type: ignore[arg-type]
        by_answer = closed(url, connections=1, seconds=4)
    slow = 0.7
    assert by_clock.by_status == {200: 2000}
    assert np.percentile(by_clock.response_seconds, 99.9) > slow
    assert len(by_answer.done) > 1000
    assert np.percentile(by_answer.response_seconds, 99.9) < slow
    assert by_answer.response_seconds.max() > slow  # it was there, and cost one answer


def test_a_request_that_is_never_answered_is_counted():
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await request(reader)
            if b"quiet" not in head:
                writer.write(OK)

    with listening(silent) as url:
        assert closed(url + "/quiet", connections=3, grace=0.1).unanswered == 3
        address, _ = local_address(url)
        messages = [encode(address, "GET", path) for path in ("/", "/quiet")]
        result = open_loop(address, messages, arrival_times(100, 0.4), grace=0.1)
    assert result.by_status == {200: 20}
    assert result.unanswered == 20
    assert result.failed == 20


def test_a_server_that_breaks_off_or_talks_nonsense_is_an_error_each_time():
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await request(reader)
        if b"nonsense" in head:
            writer.write(b"220 mail ready\r\n\r\n")
            await reader.read()
        elif b"short" in head:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")

    with listening(rude) as url:
        for path, reason in (
            ("/nonsense", "malformed answer"),
            ("/short", "closed without an answer"),
            ("/", "closed without an answer"),
        ):
            result = opened(url + path, rate=100, seconds=0.2)
            assert result.errors == {reason: 20}, path
            assert result.unanswered == 0
            assert not result.by_status
            assert result.failed == 20


def test_a_refused_connection_is_reported():
    url = f"http://127.0.0.1:{free_port()}/"
    result = opened(url, rate=100, seconds=0.2)
    assert result.errors == {"refused": 20}
    assert "20 refused" in result.line()
    assert closed(url).errors["refused"] > 4  # it goes on trying
    assert result.summary()["response_ms"]["p99"] is None


def test_a_header_that_a_status_must_have_is_looked_for():
    refused = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
    with listening(answering(OK, refused, refused.replace(b"Retry-After", b"Retry-Later"))) as url:
        result = opened(url, rate=300, seconds=0.3, required={429: b"retry-after"})
    assert result.by_status == {200: 30, 429: 60}
    assert result.missing_headers == 30


def test_the_warm_up_is_not_counted():
    with listening(answering(OK)) as url:
        address, _ = local_address(url)
        message = encode(address, "GET", "/")
        result = open_loop(address, [message], arrival_times(100, 0.6), seconds=0.4, warm_up=0.2)
        warm = closed(url, seconds=0.2, warm_up=0.2)
    assert len(result.done) == 60
    assert result.by_status == {200: 40}
    assert len(result.response_seconds) == 40
    assert 0 < warm.by_status[200] < len(warm.done)


def test_a_request_due_at_the_edge_of_the_window_counts_whatever_the_clock_shows():
    start = 4000.1
    due = (start + np.array([0.2, 0.6])) - start
    assert (due < [0.2, 0.6]).all()  # the last bits are lost
    figures = {"errors": {}, "unanswered": 0, "missing_headers": 0, "received_bytes": 0, "connections": 1}
    status = np.array([200, 204], np.int16)
    result = Result("open", (0.2, 0.6), due, due, due + 1, status, np.zeros(2), busy=0.5, **figures)  # type: ignore[arg-type]
    assert result.by_status == {200: 1}


def test_a_request_is_timed_from_when_it_was_due_and_from_when_it_was_sent():
    """One connection and a server that takes 20 ms: half of the arrivals wait for the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            await asyncio.sleep(0.02)
            writer.write(OK)

    with listening(handle) as url:
        result = opened(url, rate=100, seconds=0.4, max_connections=1)
    assert result.by_status == {200: 40}
    assert result.connections == 1
    assert result.response_seconds[-1] > 10 * result.service_seconds[-1] > 10 * 0.02
    assert result.late.max() == pytest.approx(result.response_seconds[-1] - result.service_seconds[-1])
    assert not result.valid
    assert "INVALID" in result.line()


def test_requests_on_time_make_a_valid_run():
    times = np.array([0.0, 0.1, 0.2])
    status = np.full(3, 200, np.int16)
    figures = {"errors": {}, "unanswered": 0, "missing_headers": 0, "received_bytes": 0, "connections": 1}
    result = Result("open", (0, 0.3), times, times + 1e-4, times + 2e-3, status, np.full(3, 1e-4), busy=0.5, **figures)  # type: ignore[arg-type]
    assert result.valid
    assert not result.generator_bound
    assert "INVALID" not in result.line()
    assert result.summary()["response_ms"]["p50"] == 2.0
    assert result.summary()["service_ms"]["p50"] == 1.9


def test_a_full_generator_says_so():
    none = np.array([])
    figures = {"errors": {}, "unanswered": 0, "missing_headers": 0, "received_bytes": 0, "connections": 1}
    result = Result("closed", (0, 1), none, none, none, none.astype(np.int16), none, busy=0.95, **figures)  # type: ignore[arg-type]
    assert result.generator_bound
    assert "GENERATOR-BOUND" in result.line()


def test_constant_arrivals_are_evenly_spaced_and_poisson_ones_independent():
    np.testing.assert_allclose(arrival_times(4, 1), [0, 0.25, 0.5, 0.75])
    due = arrival_times(1000, 20, "poisson", seed=1)
    assert len(due) == pytest.approx(20_000, rel=0.03)
    assert due[-1] < 20
    gaps = np.diff(due)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # as in an exponential distribution
    assert not np.array_equal(due, arrival_times(1000, 20, "poisson", seed=2))


def test_an_alarm_rings_at_its_time_and_never_after_it_was_closed():
    async def ring() -> list[float]:
        rung: list[float] = []
        alarm = Alarm(asyncio.get_running_loop(), lambda: rung.append(time.perf_counter()))
        due = time.perf_counter() + 0.0503
        alarm.set(due)
        await asyncio.sleep(0.3)
        assert len(rung) == 1
        assert rung[0] >= due
        alarm.set(time.perf_counter() + 0.05)
        alarm.close()
        await asyncio.sleep(0.1)
        return rung

    assert len(asyncio.run(ring())) == 1


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://example.com/", "example.com is not this machine"),
        ("http://192.0.2.1:3000/", "192.0.2.1 is not this machine"),
        ("http://127.0.0.1.example.com/", "is not this machine"),
        ("https://127.0.0.1/", "expected http://"),
        ("127.0.0.1:3000", "expected http://"),
        ("http://127.0.0.1:99999/", "Port out of range"),
    ],
)
def test_only_plain_http_to_this_machine_is_taken(url: str, told: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(AddressError, match=told):
        local_address(url)
    assert main([url]) == 2
    assert told in capsys.readouterr().err


def test_every_name_of_this_machine_is_taken():
    assert str(local_address("http://localhost:3000/a?b=c")[0]) == "127.0.0.1:3000"
    assert local_address("http://127.8.8.8/")[1] == "/"
    address, path = local_address("http://[::1]:80/a?b=c")
    assert (str(address), path) == ("[::1]:80", "/a?b=c")


def test_the_command_prints_one_line_or_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    body = tmp_path / "body"
    body.write_bytes(b"abc")
    with listening(answering(OK)) as url:
        assert main([url, "--seconds", "0.2", "--warm-up", "0", "--body-file", str(body)]) == 0
        line = capsys.readouterr().out
        arguments = ["--rate", "200", "--arrivals", "poisson", "--seconds", "0.2", "--json"]
        assert main([url, *arguments]) == 0
    assert line.count("\n") == 1
    assert "× 200, 0 unanswered" in line
    figures = json.loads(capsys.readouterr().out)
    assert figures["loop"] == "open"
    assert figures["status"]["200"] > 10
    assert figures["errors"] == {}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([f"http://127.0.0.1:{free_port()}/"], "no server at"),
        (["http://127.0.0.1:1/", "--rate", "0"], "above 0, received '0'"),
        (["http://127.0.0.1:1/", "--rate", "nan"], "above 0, received 'nan'"),
        (["http://127.0.0.1:1/", "--connections", "0"], "at least 1, received '0'"),
        (["http://127.0.0.1:1/", "--seconds", "x"], "received 'x'"),
    ],
)
def test_bad_use_is_one_line_and_status_2(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = int(str(stopped.code))
    assert status == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_body_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]):
    with listening(answering(OK)) as url:
        assert main([url, "--body-file", "/no/such/file"]) == 2
    assert "/no/such/file: No such file" in capsys.readouterr().err


def test_a_run_leaves_no_connection_and_no_file_open():
    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir())) + threading.active_count()

    with listening(answering(OK)) as url:
        closed(url, seconds=0.1)
        before = held()
        for _ in range(3):
            closed(url, connections=8, seconds=0.1)
            opened(url, seconds=0.1)
        give_up = time.monotonic() + 10
        while held() > before and time.monotonic() < give_up:
            time.sleep(0.01)  # the server, in this same process, closes its side of the connections
        assert held() <= before
