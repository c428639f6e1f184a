"""Small real servers with the manners, good and bad, that the generator has to cope with."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.contextmanager
def listening(handler: Handler) -> Iterator[str]:
    """Serve every connection with ``handler`` from a thread of its own; yields the URL."""
    started = threading.Event()
    loop = asyncio.new_event_loop()
    servers: list[asyncio.Server] = []

    async def careful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await handler(reader, writer)
        with contextlib.suppress(ConnectionError):
            writer.close()

    async def main() -> None:
        servers.append(await asyncio.start_server(careful, "127.0.0.1", 0, backlog=2048))

    def run() -> None:
        loop.run_until_complete(main())
        loop.call_soon(started.set)  # not before: a stop that comes between the two runs would be forgotten
        loop.run_forever()
        servers[0].close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{servers[0].sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next request's head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    _, found, length = head.lower().partition(b"content-length:")
    return head, await reader.readexactly(int(length.partition(b"\r\n")[0])) if found else b""


def answering(*answers: bytes) -> Handler:
    """A handler that gives each request the next of ``answers``, in turn over all connections."""
    count = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        while True:
            await request(reader)
            answer = answers[count % len(answers)]
            count += 1
            writer.write(answer)
            if b"connection: close" in answer.lower() or b"HTTP/1.0" in answer:
                return

    return handle
