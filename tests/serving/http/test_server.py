"""How connections are accepted: on real sockets, in the event loop that serves."""

import asyncio
import contextlib
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
import uvloop

from serving.http.server import ACCEPTED, Server
from tests.conftest import serve, workers

WAITING = 2 * ACCEPTED


async def turns_to_accept(kind: type[uvicorn.Server]) -> int:
    """Turns of the event loop in which those who wait are accepted."""
    turn, accepted_in = 0, list[int]()

    class Protocol(asyncio.Protocol):
        def __init__(self, **_: object) -> None: ...

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted_in.append(turn)
            transport.close()

    config = uvicorn.Config(no_app, http=Protocol, lifespan="off", log_config=None)
    config.load()
    server: Any = kind(config)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0), backlog=WAITING) as listening, contextlib.ExitStack() as clients:
        address = listening.getsockname()
        for _ in range(WAITING):
            clients.enter_context(socket.create_connection(address))
        await server.startup([listening])
        while len(accepted_in) < WAITING:
            await asyncio.sleep(0)
            turn += 1
        await server.shutdown([listening])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    return accepted_in[-1] - accepted_in[0] + 1


async def no_app(scope: object, receive: object, send: object) -> None:
    """No request comes."""


def test_many_connections_are_accepted_in_a_turn_where_uvicorn_accepts_one():
    assert uvloop.run(turns_to_accept(uvicorn.Server)) == WAITING
    assert uvloop.run(turns_to_accept(Server)) <= 3


@pytest.mark.skipif(sys.platform != "linux", reason="looks at a process's files in /proc")
def test_it_is_the_server_that_bentoml_runs(small_models: Path, tmp_path: Path):
    """Fails if BentoML makes uvicorn's server another way than through the name that is replaced."""
    with serve(small_models, tmp_path / "log") as server:
        port = urlsplit(server.url).port
        rows = [line.split() for line in Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]]
        listening = next(row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port)
        (worker,) = workers(server)
        files = [str(path.readlink()) for path in Path(f"/proc/{worker.pid}/fd").iterdir()]
        assert files.count(f"socket:[{listening}]") == 2


def test_connections_that_came_together_are_all_served(small_models: Path, tmp_path: Path):
    request = b"GET /livez HTTP/1.1\r\nhost: sextant\r\n\r\n"
    with serve(small_models, tmp_path / "log") as server, contextlib.ExitStack() as opened:
        parts = urlsplit(server.url)
        assert parts.hostname
        assert parts.port
        address = (parts.hostname, parts.port)
        clients = [opened.enter_context(socket.create_connection(address, timeout=30)) for _ in range(200)]
        for _ in range(2):  # they are kept
            for client in clients:
                client.sendall(request)
            assert all(client.recv(65536).startswith(b"HTTP/1.1 200") for client in clients)
        assert "Traceback" not in server.log.read_text()
