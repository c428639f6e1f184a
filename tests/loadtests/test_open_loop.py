"""Requests are sent when they are due, whatever the answers do, and a stall shows."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gevent
import pytest

from loadtests import self_test
from loadtests.connection import NO_ANSWER, TIMEOUT_SECONDS, AddressError, Connection, Failure, Target
from loadtests.payloads import Payload, payloads
from loadtests.self_test import ANSWER, BODY
from tests.conftest import free_port
from tests.loadtests.locusts import Recorded, record
from tests.loadtests.servers import Handler, answering, listening, request

RAW = ("--route", "digit-raw")


@pytest.fixture
def server() -> Iterator[str]:
    """Answers everything with the same digit."""
    with listening(answering(ANSWER)) as url:
        yield url


def stalling(after: float, seconds: float) -> Handler:
    """A handler under which the whole server blocks once, some time after its first request."""
    begun: list[float] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            begun.append(time.monotonic()) if not begun else None
            if time.monotonic() >= begun[0] + after:
                begun[0] = float("inf")
                time.sleep(seconds)  # noqa: ASYNC251 - that is the stall
            writer.write(ANSWER)

    return handle


def test_a_stall_of_a_second_shows_in_the_open_loop_and_not_in_the_closed_one(tmp_path: Path):
    found: dict[str, Recorded] = {}
    for loop, options in (("open", ["--rate", "200"]), ("closed", ["--loop", "closed", "--clients", "1"])):
        (tmp_path / loop).mkdir()
        with listening(stalling(after=2, seconds=1)) as url:
            statistics = ["--json-file", str(tmp_path / loop / "locust")]
            found[loop] = record(tmp_path / loop, url, 6, *RAW, *options, *statistics)
    ours, theirs = (found[loop].total for loop in ("open", "closed"))
    assert ours.errors == theirs.errors == {}
    assert ours.response.count == 1200
    assert ours.response.percentile(99.9) >= 0.7
    assert theirs.response.max >= 0.9  # it met the stall, once
    assert theirs.response.percentile(99.9) < 0.7
    # Locust's own statistics are told of the same.
    (told,) = json.loads((tmp_path / "open" / "locust.json").read_text())
    slow = sum(count for milliseconds, count in told["response_times"].items() if float(milliseconds) >= 700)
    assert slow >= 0.001 * 1200
    assert told["num_requests"] == 1200


def test_constant_arrivals_are_all_sent_in_their_second(server: str, tmp_path: Path):
    found = record(tmp_path, server, 3, *RAW, "--rate", "150")
    assert found.seconds() == [150, 150, 150]
    assert (found.total.ok, found.total.failed) == (450, 0)
    assert found.total.late.count == found.total.response.count == found.total.service.count == 450
    assert found.total.response.mean >= found.total.service.mean


def test_poisson_arrivals_come_at_the_rate_and_not_evenly(server: str, tmp_path: Path):
    found = record(tmp_path, server, 4, *RAW, "--rate", "100", "--arrivals", "poisson")
    assert abs(found.total.ok - 400) < 5 * 20  # five standard deviations
    assert len(set(found.seconds())) > 1
    assert found.about["arrivals"] == "poisson"


def test_processes_share_the_rate(server: str, tmp_path: Path):
    found = record(tmp_path, server, 3, *RAW, "--rate", "101", "--processes", "2")
    assert found.seconds() == [101, 101, 101]
    assert (found.about["processes"], len(found.about["generator_busy"])) == (2, 2)
    assert (found.total.ok, found.whole) == (303, True)


def test_connections_that_the_server_closes_are_replaced(tmp_path: Path):
    closing = ANSWER.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
    with listening(answering(closing)) as url:
        found = record(tmp_path, url, 2, *RAW, "--rate", "50")
    assert (found.total.ok, found.total.failed) == (100, 0)


def test_a_connection_is_let_go_before_the_server_would_close_it(tmp_path: Path):
    ended: list[str] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answering(ANSWER)(reader, writer)
        finally:
            ended.append("a connection")

    with listening(handle) as url:
        found = record(tmp_path, url, 6, *RAW, "--rate", "0.2")  # the second one after 5 s
    assert (found.total.ok, found.total.failed) == (2, 0)
    assert len(ended) == 2


def test_what_does_not_answer_well_is_told_by_reason(tmp_path: Path):
    refused = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
    wrong = ANSWER.replace(b"0.91", b"0.19")
    with listening(answering(ANSWER, refused, wrong, b"HTTP/1.1 200 OK\r\n\r\n", b"nonsense\r\n\r\n")) as url:
        found = record(tmp_path, url, 2, *RAW, "--rate", "50")
    assert found.total.count == 100
    assert found.total.ok == 20
    assert found.total.errors["429"] == 20
    assert found.total.errors["malformed answer"] == 20
    assert found.total.errors["wrong answer: the probabilities do not sum to 1"] == 20
    # An answer that never ends is given up, and those who waited for it count.
    assert found.total.errors[NO_ANSWER] == 20
    assert found.total.response.max >= TIMEOUT_SECONDS
    # A server is no less wrong for being quick about it, but those who were not answered were not kept waiting.
    assert found.total.response.count == found.total.count - found.total.errors["malformed answer"]
    assert found.whole


def test_no_server_is_a_run_of_refused_connections(tmp_path: Path):
    found = record(tmp_path, f"http://127.0.0.1:{free_port()}", 2, *RAW, "--rate", "20")
    assert found.total.errors == {"connection refused": 40}
    assert found.total.response.count == 0
    assert found.total.late.count == 40


def test_a_generator_that_cannot_keep_up_says_so(server: str, tmp_path: Path):
    found = record(tmp_path, server, 1, *RAW, "--rate", "60000")
    assert not found.told["valid"]
    assert " of 60000 requests could not be sent (" in found.told["invalid"]
    assert "the generator did not keep up: p99 of sent − due is " in found.told["invalid"]


def test_the_self_test_shows_a_stall(capfd: pytest.CaptureFixture[str]):
    assert self_test.main(["--stall", "--seconds", "4"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "a server that stalls once for 1 s in 4 s:"
    assert said[1].split(";")[0].split()[:6] == ["open", "loop,", "200", "requests/s", "800", "requests,"]
    assert "closed loop, 16 users" in said[2]


def test_the_self_test_needs_a_second():
    with pytest.raises(SystemExit, match="2"):
        self_test.main(["--seconds", "0.5"])


# --- one connection ------------------------------------------------------------------------------------------


class Heard:
    """An owner that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def answered(self, connection: Connection, status: int, headers: Mapping[str, str], body: bytes) -> None:
        assert int(headers.get("content-length", len(body))) == len(body)
        self.told.append((status, body, connection.usable))

    def failed(self, connection: Connection, failure: Failure) -> None:
        assert not connection.usable
        self.told.append(failure)

    def wait(self, count: int = 1) -> list[object]:
        with gevent.Timeout(20):
            while len(self.told) < count:
                gevent.sleep(0.005)
        return self.told


DIGIT = payloads()["digit-raw"]


def ask(url: str, payload: Payload = DIGIT, times: int = 1) -> list[object]:
    """Send the same on one connection, one after another."""
    target, heard = Target(url), Heard()
    connection = Connection(target, heard)
    for number in range(1, times + 1):
        connection.send(payload, target.encode(payload), 0.0)
        heard.wait(number)
    connection.close()
    return heard.told


def test_a_connection_is_kept_for_the_next_request(server: str):
    assert ask(server, times=3) == [(200, BODY, True)] * 3


def test_chunked_interim_and_piecewise_answers_are_understood():
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks
        for start in range(0, len(answer), 9):
            writer.write(answer[start : start + 9])
            await writer.drain()
            await asyncio.sleep(0.002)
        await reader.read()

    with listening(handle) as url:
        assert ask(url) == [(200, b"abcde", True)]


def test_an_answer_that_the_close_ends_is_whole_and_one_that_it_cuts_off_is_not():
    with listening(answering(b"HTTP/1.0 200 OK\r\n\r\nabc")) as url:
        assert ask(url) == [(200, b"abc", False)]
    with listening(answering(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\nabc")) as url:
        assert ask(url) == [Failure("connection closed")]


def test_a_large_request_goes_out_whole_though_the_server_is_slow_to_read():
    body = bytes(range(256)) * 40_000  # 10 MB: more than any socket buffer takes at once
    received: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        received.append((await request(reader))[1])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await reader.read()

    with listening(handle) as url:
        assert ask(url, Payload("large", "/", "application/octet-stream", body)) == [(200, b"", True)]
    assert received == [body]


def test_who_never_answers_is_given_up():
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    with listening(silent) as url:
        target, heard = Target(url), Heard()
        connection = Connection(target, heard)
        connection.send(DIGIT, target.encode(DIGIT), 0.0)
        gevent.sleep(0.1)
        connection.give_up()
    assert heard.told == [Failure(NO_ANSWER, waited=True)]


def test_who_is_not_there_refuses():
    assert ask(f"http://127.0.0.1:{free_port()}") == [Failure("connection refused")]


def test_a_reset_is_told_as_such():
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        told = writer.get_extra_info("socket")
        told.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    with listening(reset) as url:
        assert ask(url) == [Failure("connection reset")]


class Large(BaseHTTPRequestHandler):
    """Answers with what is larger than a TLS record and any buffer."""

    protocol_version = "HTTP/1.1"
    content = bytes(range(256)) * 4000

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_https_is_spoken_too(tmp_path: Path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*made, "-subj", "/CN=test", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Large) as large:
        large.socket = context.wrap_socket(large.socket, server_side=True)
        thread = threading.Thread(target=large.serve_forever)
        thread.start()
        try:
            assert ask(f"https://127.0.0.1:{large.server_port}", times=3) == [(200, Large.content, True)] * 3
        finally:
            large.shutdown()
            thread.join()


def test_a_request_names_its_host_prefix_and_what_is_accepted():
    target = Target("http://127.0.0.1:3000/behind/")
    payload = Payload("any", "/v1/gan/sample?n=1", "", b"", "GET", "application/json")
    assert target.encode(payload) == (
        b"GET /behind/v1/gan/sample?n=1 HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nAccept: application/json\r\n\r\n"
    )
    head, _, body = target.encode(DIGIT).partition(b"\r\n\r\n")
    assert b"Content-Length: 784" in head
    assert body == DIGIT.body


@pytest.mark.parametrize(
    "url", ["127.0.0.1:3000", "ftp://127.0.0.1", "http://", "http://127.0.0.1:99999", "http://[::1"]
)
def test_what_is_no_address_is_refused(url: str):
    with pytest.raises(AddressError, match=r"http|URL"):
        Target(url)
