"""HAProxy before the replicas: its configuration, its process, and what it tells through its runtime socket."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from types import TracebackType
from typing import Final, Self

import psutil

from loadtests.peers import Request
from loadtests.processes import ROOT, Server, ServerError, free_port

TEMPLATE: Final = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
READY: Final = Request("GET", "/readyz", "", b"")
UP: Final = "UP"
_BACKEND: Final = "replicas"
_POLL_SECONDS: Final = 0.02
_START_SECONDS: Final = 10.0
_PLACES: Final = ("/usr/sbin", "/usr/local/sbin")
"""Where packages put HAProxy; not on everybody's PATH."""

Stats = Mapping[str, Mapping[str, str]]
"""By server, and ``BACKEND`` for all of them: the columns of ``show stat``."""


class ProxyError(ServerError):
    """HAProxy is not there, or did not do in time what was waited for."""


def program() -> str:
    """The path of HAProxy.

    Raises:
        ProxyError: it is not installed.
    """
    found = shutil.which("haproxy", path=os.pathsep.join((os.environ.get("PATH", ""), *_PLACES)))
    if not found:
        raise ProxyError("no haproxy found; install it (Debian: apt-get install haproxy)")
    return found


def render(template: str, port: int, control: Path, replicas: Mapping[str, int]) -> str:
    """Fill in the configuration.

    Args:
        template: with ``$port``, ``$socket`` and ``$servers``.
        port: to listen on, at 127.0.0.1.
        control: the runtime socket.
        replicas: their ports at 127.0.0.1 by name.

    Raises:
        ValueError: there is no replica.
        KeyError: the template asks for something else.
    """
    if not replicas:
        raise ValueError("expected at least one replica, received none")
    servers = "\n".join(f"    server {name} 127.0.0.1:{own}" for name, own in replicas.items())
    return Template(template).substitute(port=port, socket=control, servers=servers)


def read_stats(table: str) -> dict[str, dict[str, str]]:
    """The rows of the replicas in the answer to ``show stat``, which is CSV after a ``#``."""
    rows = csv.DictReader(table.removeprefix("# ").splitlines())
    return {row["svname"]: row for row in rows if row["pxname"] == _BACKEND}


class Proxy:
    """HAProxy before replicas, while the block runs.

    Args:
        replicas: their ports at 127.0.0.1 by name; one at least ready.
        home: folder for its configuration and its log.

    Raises:
        ProxyError: HAProxy is not installed.
    """

    def __init__(self, replicas: Mapping[str, int], home: Path) -> None:
        self.port = free_port()
        # The path of a Unix socket has to be short, whatever that of the folder is.
        self._folder = tempfile.TemporaryDirectory(prefix="haproxy-")
        self._control = Path(self._folder.name) / "socket"
        configuration = home / "haproxy.cfg"
        self._server = Server([program(), "-db", "-f", str(configuration)], self.port, home, {})
        configuration.write_text(render(TEMPLATE.read_text("utf-8"), self.port, self._control, replicas), "utf-8")

    def __enter__(self) -> Self:
        """Start, and wait until it passes requests on."""
        self._server.__enter__()
        try:
            self._server.wait_until_ready(READY, _START_SECONDS)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        self._server.__exit__(kind, error, traceback)
        self._folder.cleanup()

    def processes(self) -> list[psutil.Process]:
        """Its own."""
        return self._server.processes()

    def stats(self) -> Stats:
        """What it knows of the replicas now.

        Raises:
            ProxyError: it does not answer.
        """
        answer = b""
        try:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(_START_SECONDS)
                control.connect(str(self._control))
                control.sendall(b"show stat\n")
                while part := control.recv(65_536):
                    answer += part
        except OSError as error:
            raise ProxyError(
                f"HAProxy does not tell how the replicas are: {error}{self._server.last_words()}"
            ) from None
        return read_stats(answer.decode())

    def wait_until(self, holds: Callable[[Stats], bool], what: str, seconds: float) -> float:
        """Ask until something holds.

        Args:
            what: it is, in words.
            seconds: to wait at most.

        Returns:
            Seconds that it took.

        Raises:
            ProxyError: it does not.
        """
        began = time.monotonic()
        while not holds(self.stats()):
            if time.monotonic() > began + seconds:
                raise ProxyError(f"after {seconds:g} s not yet: {what}{self._server.last_words()}")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - began
