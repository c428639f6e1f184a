"""uvicorn's server, made to accept many connections in one turn of its event loop.

libuv, and uvloop with it, takes one connection from a listening socket in a turn. A worker that is asked for more than
it can do has hundreds of requests to see to in each, and whoever opens a connection waits for as many turns as others
have come before: clients who should hear at once that it is too much, and health checks, which open a new one each.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

import uvicorn

ACCEPTED = 16
"""Connections taken in a turn at most, besides libuv's one: saying no to all who come must not starve those who are
served. Asked for three times what it can do, a worker that took up to 256 answered a third of what this one does (by a
generator that was late itself, so an order, no figure)."""


class Server(uvicorn.Server):
    """Accepts a connection as uvicorn does, and in the same turn up to `ACCEPTED` that wait behind it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._queues: tuple[socket.socket, ...] = ()
        self._taking: set[asyncio.Future[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; at each of the sockets through another descriptor too, which is looked at here."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        self._queues = tuple(one.dup() for one in sockets or ())
        for queue in self._queues:
            queue.settimeout(0.0)
            loop.add_reader(queue, self._accept, queue)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nobody any more, and end."""
        for queue in self._queues:
            asyncio.get_running_loop().remove_reader(queue)
            queue.close()
        await super().shutdown(sockets)

    def _accept(self, queue: socket.socket) -> None:
        # It is over, too, when file descriptors run out: libuv, which looks at the same queue, sees to that.
        with contextlib.suppress(OSError):
            for _ in range(ACCEPTED):
                connection, _address = queue.accept()
                connection.settimeout(0.0)
                task = asyncio.ensure_future(self._take(connection))
                self._taking.add(task)
                task.add_done_callback(self._taking.discard)

    async def _take(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is gone already
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl)

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes them."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
