"""How a server ends: by request with everything answered, and a worker by force with another in its place."""

import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from serving.metrics import bury_dead_workers
from tests.conftest import Server, serve, workers
from tests.serving import pictures

RAW = pictures.mnist_like().tobytes()
HEAD = (
    b"POST /v1/digit HTTP/1.1\r\nhost: sextant\r\ncontent-type: application/octet-stream\r\n"
    b"content-length: %d\r\n\r\n" % len(RAW)
)


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def response(connection: socket.socket) -> tuple[int, dict[bytes, bytes], bool]:
    """Status, headers, and whether the connection is closed after it."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.lower().split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    while len(body) < int(headers[b"content-length"]):
        body += connection.recv(65536)
    if headers.get(b"connection") != b"close":
        return int(status.split()[1]), headers, False
    return int(status.split()[1]), headers, connection.recv(1) == b""


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_a_server_that_is_told_to_end_lets_go_of_its_clients_and_ends_well(small_models: Path, tmp_path: Path):
    with (
        serve(small_models, tmp_path / "log", drain_seconds="4") as server,
        connect(server) as idle,
        connect(server) as half,
        connect(server) as cut,
    ):
        idle.sendall(HEAD + RAW)
        assert response(idle)[0::2] == (200, False)
        half.sendall(HEAD + RAW[:300])  # a request in progress
        cut.sendall(HEAD[:40])  # not even a request yet
        time.sleep(0.2)

        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.get("/readyz").status_code == 503)

        assert server.get("/livez").status_code == 200
        late = server.get("/v1/models")  # from a client who has not heard of it
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        idle.sendall(HEAD + RAW)
        assert response(idle)[0::2] == (200, True)
        until(lambda: refuses(server))
        half.sendall(RAW[300:])
        assert response(half)[0::2] == (200, True)
        assert cut.recv(1) == b""
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.log.read_text()


def refuses(server: Server) -> bool:
    """Whether nobody accepts connections any more; the supervisor's own backlog may still take one."""
    with connect(server) as connection:
        connection.settimeout(0.5)
        try:
            connection.sendall(b"GET /livez HTTP/1.1\r\nhost: sextant\r\n\r\n")
            return not connection.recv(1)
        except (TimeoutError, ConnectionError):
            return True


def test_all_that_was_accepted_is_answered_before_the_end(small_models: Path, tmp_path: Path):
    def ask(number: int) -> int:
        with connect(server) as connection:
            connection.sendall(HEAD + RAW[:number])
            sent.append(number)
            until(told.__len__)
            connection.sendall(RAW[number:])
            return response(connection)[0]

    sent: list[int] = []
    told: list[bool] = []
    with (
        serve(small_models, tmp_path / "log", drain_seconds="0.5") as server,
        ThreadPoolExecutor(100) as clients,
    ):
        answers = [clients.submit(ask, number) for number in range(100)]
        until(lambda: len(sent) == len(answers))
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        told.append(True)
        assert {answer.result() for answer in answers} == {200}
        assert server.process.wait(30) == 0


def test_what_never_ends_is_given_up_after_the_grace(small_models: Path, tmp_path: Path):
    settings = {"drain_seconds": "0", "grace_seconds": "1.5", "deadline_seconds": "300"}
    with serve(small_models, tmp_path / "log", **settings) as server, connect(server) as stuck:
        stuck.sendall(HEAD)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert "1.5 s after SIGTERM not everything is answered" in server.log.read_text()


def test_from_the_keyboard_it_ends_at_once(small_models: Path, tmp_path: Path):
    with serve(small_models, tmp_path / "log", drain_seconds="300", grace_seconds="600") as server:
        os.killpg(server.pid, signal.SIGINT)  # as a terminal does
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_is_killed_is_replaced_and_counted(count: int, small_models: Path, tmp_path: Path):
    def metric(name: str) -> float:
        try:
            lines = server.get("/metrics").text.splitlines()
        except httpx.TransportError:
            return -1  # the one that was asked is dead
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    with serve(small_models, tmp_path / "log", workers=str(count)) as server:
        until(lambda: metric("sextant_workers") == count)
        assert 'sextant_requests_total{route="/v1/digit",status="500"} 0.0' in server.get("/metrics").text
        assert metric("sextant_worker_deaths_total") == 0
        victim, *_ = workers(server)
        victim.kill()
        until(lambda: metric("sextant_worker_deaths_total") == 1)
        assert metric("sextant_workers") == count
        alive = workers(server)
        assert len(alive) == count
        assert victim not in alive
        until(lambda: server.get("/readyz").status_code == 200)


def test_a_dead_worker_is_buried_once(tmp_path: Path):
    dead = 4194305  # above the largest process id of Linux
    for name in (f"gauge_livesum_{dead}.db", f"gauge_livemax_{dead}.db", f"counter_{dead}.db"):
        (tmp_path / name).touch()
    (tmp_path / f"gauge_livesum_{os.getpid()}.db").touch()
    assert [bury_dead_workers(tmp_path), bury_dead_workers(tmp_path)] == [1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"counter_{dead}.db",  # what it counted remains counted
        f"gauge_livesum_{os.getpid()}.db",
    ]
