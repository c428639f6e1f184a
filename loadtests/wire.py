"""HTTP/1.1 from the client's side, by hand: requests are encoded once, answers read for their status and their end.

An HTTP library would parse and keep what a load generator throws away; at 10 000 answers a second that is the
difference between measuring the server and measuring the library. RFC 9112 is followed as far as servers go:
``Content-Length``, chunked and close-delimited bodies, ``Connection: close``, interim answers.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol, cast
from urllib.parse import urlsplit

_LARGEST_HEAD = 65_536


class AddressError(ValueError):
    """A URL that cannot be measured from here; the message says what was received and what was expected."""


class MalformedAnswerError(ValueError):
    """Bytes that are no HTTP/1.1 answer."""


@dataclass(frozen=True)
class Address:
    """Where the server listens: an IP address of this machine, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def local_address(url: str) -> tuple[Address, str]:
    """Split ``url`` into the address and the path with its query.

    ``localhost`` is taken as 127.0.0.1, where servers listen by default.

    Raises:
        AddressError: not plain HTTP, no port that can be, or an address of another machine: load is only ever put on
            this one.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        raise AddressError(f"{url!r} is no URL: {error}") from None
    host = parts.hostname or ""
    if parts.scheme != "http" or not host:
        raise AddressError(f"expected http://ADDRESS:PORT/PATH, received {url!r}")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise AddressError(f"{host} is not this machine; load is put on 127.0.0.0/8, ::1 and localhost alone")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Address(host, port), path


def encode(address: Address, method: str, path: str, body: bytes = b"", media_type: str = "") -> bytes:
    """One request, ready to be written to a keep-alive connection."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address}"]
    if media_type:
        lines.append(f"Content-Type: {media_type}")
    if body or method not in {"GET", "HEAD"}:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


@dataclass
class Traffic:
    """What all connections of a run share.

    Args:
        required: header that answers of a status must have, by status; lower case.
        received_bytes: of answers, heads included.
        missing_headers: answers that lacked theirs.
    """

    required: Mapping[int, bytes] = field(default_factory=dict)
    received_bytes: int = 0
    missing_headers: int = 0


class Owner(Protocol):
    """Whoever uses a connection: told of every answer and of requests that will have none."""

    def answered(self, connection: Connection, status: int) -> None:
        """Take note of a whole answer; ``connection.reusable`` says whether another request may follow."""

    def lost(self, connection: Connection, reason: str) -> None:
        """Take note that the connection broke under a request."""


class Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request on its way.

    Args:
        owner: is told of answers and losses.
        traffic: is counted up.
    """

    __slots__ = ("_body", "_buffer", "_closing", "_owner", "_status", "_traffic", "_transport", "busy", "due", "sent")

    def __init__(self, owner: Owner, traffic: Traffic) -> None:
        self._owner = owner
        self._traffic = traffic
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._body: _Sized | _Chunked | _UntilClosed | None = None  # None while the head is still arriving
        self._status = 0
        self._closing = False
        self.busy = False
        self.due = self.sent = 0.0

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent."""
        return not self._closing and not self.busy and self._transport is not None

    def send(self, message: bytes, due: float | None = None) -> None:
        """Write a request that was due at ``due`` (now, by default), on ``time.perf_counter``'s clock."""
        assert self._transport is not None  # noqa: S101 (an owner gets connections that are made)
        self.busy = True
        self.sent = perf_counter()
        self.due = self.sent if due is None else due
        self._transport.write(message)

    def close(self) -> None:
        """Let go, whatever is under way; the owner hears nothing more of it."""
        self._owner, self.busy, self._closing = _NOBODY, False, True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read on; tell the owner when an answer is whole."""
        self._traffic.received_bytes += len(data)
        try:
            ended = self._read(data)
        except ValueError:
            self._lose("malformed answer")
            return
        if ended:
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the owner, unless it was the end of an answer that only the close ends."""
        self._transport = None
        self._closing = True
        if self.busy and isinstance(self._body, _UntilClosed):
            self._finish()
        elif self.busy:
            self._lose("reset" if error else "closed without an answer")

    def _read(self, data: bytes) -> bool:
        """Whether ``data`` completes the answer."""
        if not self.busy:
            raise MalformedAnswerError("an answer to no request")
        while self._body is None:
            data = self._buffer + data if self._buffer else data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > _LARGEST_HEAD:
                    raise MalformedAnswerError("a head without an end")
                self._buffer = data
                return False
            self._buffer = b""
            self._begin(data[: end + 2].lower())
            data = data[end + 4 :]
        return self._body.take(data)

    def _begin(self, head: bytes) -> None:
        """Take from the head (lower case, with the last line's end) what tells the end of the answer."""
        if not head.startswith(b"http/1."):
            raise MalformedAnswerError("not HTTP/1")
        self._status = status = int(head[9:12])
        if status < 200:
            return  # an interim answer; the real one follows
        required = self._traffic.required
        if status in required and _header(head, required[status]) is None:
            self._traffic.missing_headers += 1
        connection = _header(head, b"connection")
        self._closing |= connection == b"close" or (head.startswith(b"http/1.0") and connection != b"keep-alive")
        length = _header(head, b"content-length")
        if status in {204, 304}:
            self._body = _Sized(0)
        elif length is not None:
            self._body = _Sized(int(length))
        elif _header(head, b"transfer-encoding") == b"chunked":
            self._body = _Chunked()
        else:
            self._body, self._closing = _UntilClosed(), True

    def _finish(self) -> None:
        owner, self.busy, self._body = self._owner, False, None
        if self._closing:
            self.close()
        owner.answered(self, self._status)

    def _lose(self, reason: str) -> None:
        owner = self._owner
        self.close()
        owner.lost(self, reason)


def _header(head: bytes, name: bytes) -> bytes | None:
    """The value of a header in a head in lower case; None when it is not there."""
    start = head.find(b"\r\n%b:" % name)
    if start < 0:
        return None
    start += len(name) + 3
    return head[start : head.index(b"\r\n", start)].strip()


class _Sized:
    """A body of so many bytes."""

    __slots__ = ("_left",)

    def __init__(self, length: int) -> None:
        self._left = length

    def take(self, data: bytes) -> bool:
        self._left -= len(data)
        if self._left < 0:
            raise MalformedAnswerError("more bytes than Content-Length says")
        return self._left == 0


class _Chunked:
    """A body in chunks, each after a line with its size; the last is empty and followed by trailers."""

    __slots__ = ("_buffer", "_last")

    def __init__(self) -> None:
        self._buffer = b""
        self._last = False

    def take(self, data: bytes) -> bool:
        self._buffer += data
        while True:
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                return False
            if self._last:
                self._buffer = rest
                if not line:
                    return True
                continue
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                self._last, self._buffer = True, rest
            elif len(rest) < size + 2:
                return False
            else:
                self._buffer = rest[size + 2 :]


class _UntilClosed:
    """A body that ends with the connection."""

    __slots__ = ()

    def take(self, data: bytes) -> bool:
        return len(data) < 0


class _Nobody:
    """The owner of a lost connection."""

    def answered(self, connection: Connection, status: int) -> None:
        """Ignore it."""

    def lost(self, connection: Connection, reason: str) -> None:
        """Ignore it."""


_NOBODY = _Nobody()
