"""What goes over the wire, byte for byte: a reply in one write, and the ways it may not take."""

import asyncio
import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from serving.http.front import send_reply
from serving.http.messages import Reply
from tests.conftest import Server, serve
from tests.serving import pictures

RAW = pictures.mnist_like().tobytes()
HEAD = b"POST /v1/digit HTTP/1.1\r\nhost: x\r\ncontent-length: 784\r\n"


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True


def reply_through_uvicorn(
    reply: Reply, *, method: str = "POST", short: bool = True, **state: object
) -> tuple[Wire, int]:
    """Send through a request and response of uvicorn's; ``short`` lets it see that it is its own caller."""
    wire, completed = Wire(), []

    async def main() -> None:
        cycle = RequestResponseCycle(
            scope={"method": method},  # type: ignore[typeddict-item]
            transport=wire,  # type: ignore[arg-type]
            flow=SimpleNamespace(write_paused=False),  # type: ignore[arg-type]
            logger=None,  # type: ignore[arg-type]
            access_logger=None,  # type: ignore[arg-type]
            access_log=False,
            default_headers=[(b"date", b"today")],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=lambda: completed.append(True),
        )
        for name, value in state.items():
            setattr(cycle, name, value)

        async def send(message: ASGISendEvent) -> None:
            await cycle.send(message)

        await send_reply(cycle.send if short else send, reply)
        assert cycle.response_complete or cycle.disconnected

    asyncio.run(main())
    return wire, len(completed)


REPLIES = [
    Reply(b'{"a": 1}'),
    Reply(b"", "text/plain", 503, (("retry-after", "3"),)),
    Reply(b"\x89PNG" * 1000, "image/png", headers=(("x-sextant-seed", "7"), ("x-sextant-model", "m"))),
]


@pytest.mark.parametrize("reply", REPLIES, ids=["json", "problem", "picture"])
def test_a_reply_is_written_at_once_and_is_what_uvicorn_would_have_written(reply: Reply):
    at_once, completed = reply_through_uvicorn(reply)
    in_two, also_completed = reply_through_uvicorn(reply, short=False)
    assert len(at_once.writes) == completed == also_completed == 1
    assert b"".join(in_two.writes) == at_once.writes[0]
    assert not at_once.closed


@pytest.mark.parametrize(
    ("state", "writes", "ends"),
    [
        ({"keep_alive": False}, 2, b"body"),
        ({"method": "HEAD"}, 1, b"\r\n\r\n"),
        ({"disconnected": True}, 0, b""),
    ],
    ids=["the connection ends", "only the head is asked for", "the client has gone"],
)
def test_what_needs_more_than_writing_goes_uvicorns_way(state: dict[str, Any], writes: int, ends: bytes):
    wire, _ = reply_through_uvicorn(Reply(b"body"), **state)
    assert len(wire.writes) == writes
    assert b"".join(wire.writes).endswith(ends)
    assert wire.closed == (state == {"keep_alive": False})
    assert (b"connection: close" in b"".join(wire.writes)) == wire.closed


def answers(server: Server, sent: bytes, count: int) -> list[tuple[bytes, Any]]:
    """Send bytes as they are and read ``count`` answers: their status line and their JSON."""
    address = urlsplit(server.url)
    found: list[tuple[bytes, Any]] = []
    with socket.create_connection((address.hostname, address.port), 20) as connection:
        connection.sendall(sent)
        stream = connection.makefile("rb")
        while len(found) < count:
            status, length = stream.readline().rstrip(), 0
            while (line := stream.readline().rstrip()) != b"":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            if status != b"HTTP/1.1 100 Continue":
                found.append((status, json.loads(stream.read(length))))
    return found


def test_pipelined_requests_are_answered_in_their_order(server: Server):
    one = pictures.mnist_like(seed=1).tobytes()
    sent = HEAD + b"\r\n" + RAW + HEAD + b"\r\n" + one + b"GET /v1/models/none HTTP/1.1\r\nhost: x\r\n\r\n"
    (first, a), (second, b), (third, _) = answers(server, sent, 3)
    assert first == second == b"HTTP/1.1 200 OK"
    assert third == b"HTTP/1.1 404 Not Found"
    for answer, body in ((a, RAW), (b, one)):
        alone = server.post("/v1/digit", body, "application/octet-stream").json()
        assert answer["predictions"][0]["index"] == alone["predictions"][0]["index"]


@pytest.mark.parametrize("header", [b"expect: 100-continue\r\n", b"connection: close\r\n", b""])
def test_a_request_is_answered_alike_however_it_asks(server: Server, header: bytes):
    ((status, answer),) = answers(server, HEAD + header + b"\r\n" + RAW, 1)
    assert status == b"HTTP/1.1 200 OK"
    assert answer == server.post("/v1/digit", RAW, "application/octet-stream").json()


def test_an_idle_connection_is_kept_as_long_as_is_set(small_models: Path, tmp_path: Path):
    head = HEAD + b"\r\n" + RAW
    with serve(small_models, tmp_path / "log.txt", models="mnist_mlp", keep_alive_seconds="0.5") as short:
        address = urlsplit(short.url)
        with socket.create_connection((address.hostname, address.port), 20) as connection:
            connection.sendall(head)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            assert connection.recv(65536) == b""  # closed, and not by us


def test_an_idle_connection_outlives_those_of_the_usual_clients(server: Server):
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), 20) as connection:
        for _ in range(2):
            connection.sendall(HEAD + b"\r\n" + RAW)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(6)  # uvicorn's default is 5
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)  # nothing, and not the end
