"""The ASGI application in front: routes to the request line, everything else to BentoML.

BentoML's own request stack (Starlette, OpenTelemetry, metrics, serializers) costs milliseconds a request.
What passes here costs the protocol, the task and the model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import orjson

from serving.errors import MethodNotAllowedError, NotFoundError, UnavailableError
from serving.http.admission import Admission
from serving.http.drain import Drain
from serving.http.line import RequestLine, problem_reply
from serving.http.messages import Reply
from serving.http.protocol import encode_headers, write_reply
from serving.http.receive import ClientGoneError, Message, Receive, Scope, Send, receive_request
from serving.http.status import model_reply, models_reply
from serving.tasks import Endpoint
from serving.tracing import Trace, Tracer, current_trace

App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

access_logger = logging.getLogger("sextant.access")

_MODELS = "/v1/models"
_MODEL = "/v1/models/{model}"
_READ = ("GET", "HEAD")
_CLOSE = (b"connection", b"close")
_SAME_ORIGIN = (b"content-security-policy", b"default-src 'self' 'unsafe-inline' data:")


class Front:
    """Answers ``/v1``, ``/livez`` and ``/readyz``.

    Args:
        line: the request line.
        endpoints: the prediction routes.
        fallback: BentoML's application: lifespan, OpenAPI page, ``/metrics``.
        drain: says when the worker is about to end.

    Attributes:
        admission: knows the requests in progress.
    """

    def __init__(self, line: RequestLine, endpoints: Iterable[Endpoint[Any]], fallback: App, drain: Drain) -> None:
        self._line = line
        self._endpoints = {endpoint.path: endpoint for endpoint in endpoints}
        self._fallback = fallback
        self._drain = drain
        settings = line.settings
        self.admission = Admission(self._endpoints, settings.max_requests, line.refused, early=not settings.access_log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection's request."""
        path = scope.get("path", "")
        if scope["type"] != "http":
            await self._fallback(scope, receive, send)
        elif (endpoint := self._endpoints.get(path)) is not None:
            await self._serve(path, self._predict(endpoint, scope, receive), scope, send)
        elif path in ("/livez", "/readyz"):
            await send_reply(send, self._health(path), closing=self._drain.begun)
        elif path == "/v1" or path.startswith("/v1/"):
            route = path if path == _MODELS else _MODEL if path.startswith(_MODELS + "/") else "unknown"
            await self._serve(route, self._tell(route, scope), scope, send)
        else:
            if path == "/metrics":
                self._line.flush_metrics()
            await self._fallback(scope, receive, _tame(path, send, closing=self._drain.begun))

    async def _predict(self, endpoint: Endpoint[Any], scope: Scope, receive: Receive) -> Reply:
        deadline = time.monotonic() + self._line.settings.deadline_seconds
        if scope["method"] not in endpoint.methods:
            raise MethodNotAllowedError(scope["method"], endpoint.path, endpoint.methods)
        self.admission.enter(endpoint.path)
        try:
            request = await receive_request(
                scope, receive, max_body_bytes=self._line.settings.max_body_bytes, deadline=deadline
            )
            return await self._line.answer(endpoint, request, deadline, lambda: _disconnected(receive))
        finally:
            self.admission.leave(endpoint.path)

    async def _tell(self, route: str, scope: Scope) -> Reply:
        if route == "unknown":
            raise NotFoundError(f"There is no {scope['path'][:200]}; there are {', '.join(self._routes())}.")
        if scope["method"] not in _READ:
            raise MethodNotAllowedError(scope["method"], scope["path"], _READ)
        if route == _MODELS:
            return models_reply(self._line.repository)
        return model_reply(self._line.repository, scope["path"].removeprefix(_MODELS + "/"))

    async def _serve(self, route: str, answering: Awaitable[Reply], scope: Scope, send: Send) -> None:
        started = time.perf_counter()
        trace = None if self._line.tracer is None else begin_trace(self._line.tracer, scope)
        try:
            reply = await self._line.reply(route, answering)
        except ClientGoneError:
            return
        await send_reply(send, reply, closing=self._drain.begun)
        ended = time.perf_counter()
        if trace is not None:
            trace.end(route=route, method=scope["method"], status=reply.status, start=started, end=ended)
        if self._line.settings.access_log:
            _log_access(scope, reply, ended - started)

    def _health(self, path: str) -> Reply:
        well = self._line.alive if path == "/livez" else self._line.ready and not self._drain.begun
        if well:
            return Reply(b"ok\n", "text/plain; charset=utf-8")
        why = "This server is about to end." if self._drain.begun else "No model is ready; GET /v1/models says why."
        return problem_reply(UnavailableError(why))

    def _routes(self) -> list[str]:
        return [*self._endpoints, _MODELS, _MODEL]


def begin_trace(tracer: Tracer, scope: Scope) -> Trace | None:
    """Begin the trace of a request that asks for one, and make it the current one."""
    parent = state = b""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            parent += b"," + value if parent else value  # sent twice it is malformed, as the standard wants
        elif name == b"tracestate":
            state += b"," + value if state else value
    trace = tracer.begin(parent, state) if parent else None
    current_trace.set(trace)
    return trace


async def send_reply(send: Send, reply: Reply, *, closing: bool = False) -> None:
    """Send a reply, its length known; ``closing`` the connection with it."""
    if closing or not write_reply(send, reply):
        headers = encode_headers(reply) + ([_CLOSE] if closing else [])
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _tame(path: str, send: Send, *, closing: bool) -> Send:
    """Let a reply of BentoML's pass, its 404 replaced by ours, which says more, and its page kept to this server.

    BentoML's OpenAPI page would load a tracker from another host; the content policy has the browser refuse it.
    """
    missing = False

    async def pass_or_replace(message: Message) -> None:
        nonlocal missing
        if message["type"] == "http.response.start" and message["status"] == 404:
            missing = True
            await send_reply(send, problem_reply(NotFoundError(f"There is no {path[:200]}.")), closing=closing)
        elif not missing:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], _SAME_ORIGIN, *([_CLOSE] if closing else [])]
            await send(message)

    return pass_or_replace


def _log_access(scope: Scope, reply: Reply, seconds: float) -> None:
    line = {
        "method": scope["method"],
        "path": scope["path"],
        "status": reply.status,
        "bytes": len(reply.body),
        "milliseconds": round(seconds * 1000, 3),
        "client": (scope.get("client") or ("", 0))[0],
    }
    access_logger.info(orjson.dumps(line).decode())
