"""Two short cuts through uvicorn's HTTP/1.1 protocol; whatever they do not fit goes the usual way.

Refusing early: a refusal that goes the whole way (a scope, a task, two messages, as ASGI wants) costs half as much
as a cheap answer. At three times its capacity a worker would spend a quarter of its time on saying no. So what is
over the limit is answered from the head of the request, before there is any ASGI.

Replying at once: ASGI sends head and body in two messages, which uvicorn writes one by one. Written together they are
one call of the system and one segment on the wire for two.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serving.http.admission import Admission
from serving.http.drain import Drain
from serving.http.messages import Reply
from serving.http.receive import Send


class _Answered:
    """Stands for a request and response that are over: uvicorn drops what is left of the body."""

    response_complete = True


def protocol(admission: Admission, drain: Drain, keep_alive_seconds: float) -> type[HttpToolsProtocol]:
    """Make uvicorn's HTTP/1.1 protocol, but that it asks ``admission`` as soon as it has read a head.

    Args:
        admission: says what to refuse.
        drain: says when the worker is about to end, and refusals have to close their connections too.
        keep_alive_seconds: after which an idle connection is closed; BentoML's 5 are fewer than those of the proxies
            that stand before a service, which then meet connections that are closed as they send.
    """

    class Protocol(HttpToolsProtocol):
        cycle: RequestResponseCycle | Any

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.timeout_keep_alive = keep_alive_seconds  # type: ignore[assignment]  # any number of seconds will do
            super().connection_made(transport)  # type: ignore[arg-type]

        def on_headers_complete(self) -> None:
            # A pipelined request has to wait for its turn, one that asks before it sends its body may never send
            # it, and the last answer of a connection says that it is: these go the usual way.
            busy = self.cycle is not None and not self.cycle.response_complete
            refusal = None
            if not busy and not self.expect_100_continue and not drain.begun:
                refusal = admission.refuse(self.url, self.server_state.default_headers)
            if refusal is None:
                super().on_headers_complete()
                return
            self.cycle = _Answered
            self.transport.write(refusal)
            if self.parser.should_keep_alive():
                self.on_response_complete()
            else:
                self.transport.close()

    return Protocol


def write_reply(send: Send, reply: Reply) -> bool:
    """Write a whole reply at once, where uvicorn would do nothing but write it in two.

    Args:
        send: of the ASGI call.
        reply: its head and its body.

    Returns:
        Whether it was written: not when another server calls, or this one has more to see to.
    """
    cycle = getattr(send, "__self__", None)
    if (
        not isinstance(cycle, RequestResponseCycle)
        or cycle.response_started
        or cycle.waiting_for_100_continue
        or cycle.disconnected
        or cycle.flow.write_paused
        or cycle.access_log
        or not cycle.keep_alive
        or cycle.scope["method"] == "HEAD"
    ):
        return False
    head = [STATUS_LINE[reply.status]]
    head += [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *encode_headers(reply))]
    cycle.transport.write(b"".join((*head, b"\r\n", reply.body)))
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    return True


def encode_headers(reply: Reply) -> list[tuple[bytes, bytes]]:
    """Headers of a reply, its length among them."""
    return [
        (b"content-type", reply.media_type.encode("ascii")),
        (b"content-length", b"%d" % len(reply.body)),
        *((name.encode("ascii"), value.encode("latin-1")) for name, value in reply.headers),
    ]
