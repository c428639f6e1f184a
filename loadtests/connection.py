"""Keep-alive connections under gevent that work by callbacks: no greenlet, timer or copy for each request.

Locust's own client takes 0.18 ms of a core for a request, and a greenlet each. Here a request is one write, and its
answer is read when the event loop says that it has come, by the parser of geventhttpclient (llhttp): 0.04 ms, with
everything that is checked and recorded. What a generator does not do it cannot be late for.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import gevent  # type: ignore[import-untyped]
import gevent.socket  # type: ignore[import-untyped]
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError, HTTPResponse

from loadtests.payloads import Payload

TIMEOUT_SECONDS: Final = 15.0
"""After so long without an answer a request is given up; the service answers within its deadline of 10 s."""
NO_ANSWER: Final = f"no answer within {TIMEOUT_SECONDS:g} s"
_READ, _WRITE = 1, 2
_CHUNK: Final = 16_384
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_OWN_FAULTS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
_REASONS: Final[Mapping[type[BaseException], str]] = {
    ConnectionRefusedError: "connection refused",
    ConnectionResetError: "connection reset",
    BrokenPipeError: "connection reset",
    HTTPConnectionClosed: "connection closed",
    HTTPParseError: "malformed answer",
    gevent.socket.gaierror: "host not found",
}


class AddressError(ValueError):
    """A URL that cannot be loaded; the message says what was received and what was expected."""


@dataclass(frozen=True)
class Failure:
    """Why a request has no answer.

    Attributes:
        reason: in a few words.
        waited: whether somebody waited for it as long as answers may take; not so when a connection broke.
        unsent: whether it was the generator that could not send.
    """

    reason: str
    waited: bool = False
    unsent: bool = False


def failure(error: BaseException) -> Failure:
    """What an exception of a client means."""
    if isinstance(error, TimeoutError | gevent.Timeout):
        return Failure(NO_ANSWER, waited=True)
    if isinstance(error, OSError) and error.errno in _OWN_FAULTS:
        return Failure(f"not sent: {error.strerror}", unsent=True)
    return Failure(next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), type(error).__name__))


class Target:
    """The server at a URL.

    Args:
        url: ``http[s]://HOST[:PORT][/PREFIX]``; certificates are not verified, as elsewhere in Locust.

    Raises:
        AddressError: it is something else, or there is no such host.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise AddressError(f"{url!r} is no URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AddressError(f"expected http://HOST:PORT, received {url!r}")
        self._host = parts.netloc.rpartition("@")[2]
        self._prefix = parts.path.rstrip("/")
        self._name = parts.hostname
        self._tls = _unverified() if parts.scheme == "https" else None
        try:
            found = gevent.socket.getaddrinfo(parts.hostname, port, type=gevent.socket.SOCK_STREAM)
        except OSError as error:
            raise AddressError(f"{url}: {error.strerror or error}") from None
        self._family, _, _, _, self._address = found[0]

    def encode(self, payload: Payload) -> bytes:
        """The request, ready to be written."""
        lines = [f"{payload.method} {self._prefix}{payload.path} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"Accept: {payload.accept}"] if payload.accept else []
        lines += [f"Content-Type: {payload.media_type}"] if payload.media_type else []
        lines += [f"Content-Length: {len(payload.body)}"] if payload.body or payload.method != "GET" else []
        return "\r\n".join([*lines, "", ""]).encode("ascii") + payload.body

    def connect(self) -> Any:  # noqa: ANN401 - gevent's sockets have no types
        """A socket that does not block; waits at most `TIMEOUT_SECONDS`.

        Raises:
            OSError: there is no connection.
        """
        opened = gevent.socket.socket(self._family, gevent.socket.SOCK_STREAM)
        try:
            opened.settimeout(TIMEOUT_SECONDS)
            opened.connect(self._address)
            opened.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
            if self._tls is not None:
                opened = self._tls.wrap_socket(opened, server_hostname=self._name)
            opened.settimeout(0.0)
        except BaseException:
            opened.close()
            raise
        return opened


class Owner(Protocol):
    """Whoever uses a connection: told once of every request sent."""

    def answered(self, connection: Connection, status: int, headers: Mapping[str, Any], body: bytes) -> None:
        """Take a whole answer; ``connection.usable`` says whether another request may follow."""

    def failed(self, connection: Connection, failure: Failure) -> None:
        """Hear that there will be none."""


class Connection:
    """A keep-alive connection with at most one request on its way; callbacks run in gevent's hub and may not block.

    Args:
        target: to connect to.
        owner: is told of answers and failures.

    Attributes:
        payload: of the request on its way.
        due: when it should have been sent, on ``time.perf_counter``'s clock.
        sent: when it was written, or its connection was begun.
        idle_since: when its last answer had come in whole.
    """

    def __init__(self, target: Target, owner: Owner) -> None:
        self._target = target
        self._owner = owner
        self._socket: Any = None
        self._readable: Any = None
        self._writable: Any = None
        self._answer: _Answer | None = None
        self._rest: memoryview | bytes = b""
        self._closed = False
        self.payload: Payload | None = None
        self.due = self.sent = self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        """Whether a request may be sent."""
        return self._answer is None and not self._closed

    def send(self, payload: Payload, message: bytes, due: float) -> None:
        """Send, on a new connection if there is none yet; returns at once."""
        self.payload, self.due, self.sent = payload, due, perf_counter()
        self._answer = _Answer(payload.method)
        self._rest = message
        if self._socket is None:
            gevent.spawn(self._open)
        else:
            self._write()

    def close(self) -> None:
        """Let go; the owner hears nothing of what was on its way."""
        self._closed, self._answer = True, None
        for watcher in (self._readable, self._writable):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        self._readable = self._writable = None
        if self._socket is not None:
            self._socket.close()

    def give_up(self) -> None:
        """Close, and tell the owner that no answer has come in time."""
        self._fail(TimeoutError())

    def _open(self) -> None:
        try:
            self._socket = self._target.connect()
        except OSError as error:
            if not self._closed:
                self._fail(error)
            return
        if self._closed:  # given up meanwhile
            self._socket.close()
            return
        loop, number = gevent.get_hub().loop, self._socket.fileno()
        self._readable, self._writable = loop.io(number, _READ), loop.io(number, _WRITE)
        self._readable.start(self._read)
        self._write()

    def _write(self) -> None:
        try:
            written = self._socket.send(self._rest)
        except _WOULD_BLOCK:
            written = 0
        except OSError as error:
            self._fail(error)
            return
        self._rest = memoryview(self._rest)[written:] if written < len(self._rest) else b""
        if not self._rest:
            self._writable.stop()
        elif not self._writable.active:
            self._writable.start(self._write)

    def _read(self) -> None:
        while not self._closed:
            try:
                data = self._socket.recv(_CHUNK)
            except _WOULD_BLOCK:
                return
            except OSError as error:
                self._fail(error)
                return
            answer = self._answer
            if answer is None:  # closed by the server while idle, or an answer to no request
                self.close()
                return
            try:
                answer.feed(data)
            except HTTPParseError as error:
                self._fail(error if data else HTTPConnectionClosed())
                return
            if answer.whole:
                self._finish(answer)
                return
            if not data:
                self._fail(HTTPConnectionClosed())

    def _finish(self, answer: _Answer) -> None:
        self._answer, self.idle_since = None, perf_counter()
        if self._rest or answer.should_close():  # answered before all was sent, or the last answer
            self.close()
        self._owner.answered(self, answer.get_code(), answer.info(), bytes(answer.body))

    def _fail(self, error: BaseException) -> None:
        waiting = self._answer is not None
        self.close()
        if waiting:
            self._owner.failed(self, failure(error))


class _Answer(HTTPResponse):
    """An answer as it comes in."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.body = bytearray()

    @property
    def whole(self) -> bool:
        """Whether it has come to its end; an interim answer (1xx) is followed by the real one."""
        return bool(self.message_complete) and self.get_code() >= 200

    def _on_body(self, buf: bytearray) -> None:
        self.body += buf


def _unverified() -> ssl.SSLContext:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context  # type: ignore[no-any-return]
