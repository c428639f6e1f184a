"""Reading one request off an ASGI connection, within the caps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from serving.errors import DeadlineError, MalformedError, TooLargeError, UnsupportedMediaError
from serving.http.media import parse_media_type
from serving.http.messages import Request

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_MAX_PARAMETERS = 32


class ClientGoneError(Exception):
    """The client closed the connection: there is nobody to answer."""


async def receive_request(scope: Scope, receive: Receive, *, max_body_bytes: int, deadline: float) -> Request:
    """Read the request with its whole body.

    Raises:
        TooLargeError: the body is over the cap; announced so, or grown so.
        UnsupportedMediaError: the body is compressed.
        MalformedError: there are too many query parameters.
        DeadlineError: the body had not arrived by the ``deadline`` of the monotonic clock.
        ClientGoneError: the client went away before it had sent all.
    """
    content_type = accept = ""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value.decode("latin-1")
        elif name == b"accept":
            accept = value.decode("latin-1")
        elif name == b"content-length" and int(value) > max_body_bytes:
            raise _too_large(f"{int(value)} bytes", max_body_bytes)
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedMediaError(
                f"Content-Encoding {value.decode('latin-1')[:40]} is not taken; send the body as it is."
            )
    media_type, parameters = parse_media_type(content_type)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    body = message.get("body", b"")
    if message.get("more_body", False):
        body = await _receive_rest(body, receive, max_body_bytes, deadline)
    if len(body) > max_body_bytes:
        raise _too_large("more", max_body_bytes)
    return Request(
        scope["method"],
        scope["path"],
        parse_query(scope["query_string"]),
        media_type,
        parameters,
        accept,
        body,
    )


def parse_query(query: bytes) -> dict[str, str]:
    """Split a query string; of a repeated parameter the last value counts.

    Raises:
        MalformedError: there are too many parameters.
    """
    if not query:
        return {}
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError as error:
        raise MalformedError(f"The query string has more than {_MAX_PARAMETERS} parameters.") from error
    return dict(pairs)


async def _receive_rest(first: bytes, receive: Receive, max_body_bytes: int, deadline: float) -> bytes:
    chunks, size, more = [first], len(first), True
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > max_body_bytes:
                    raise _too_large("more", max_body_bytes)
                chunks.append(chunk)
                more = message.get("more_body", False)
    except TimeoutError:
        raise DeadlineError(f"The body had not arrived by the deadline; received {size} bytes.") from None
    return b"".join(chunks)


def _too_large(received: str, cap: int) -> TooLargeError:
    return TooLargeError(f"The body may have {cap} bytes; received {received}.")
