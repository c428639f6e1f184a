"""Replicas of the service behind HAProxy, each of which can be ended, killed, stopped and started again."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from deploy.replicas.proxy import READY, UP, Proxy
from loadtests.processes import Server, ServerError, ask

STOP_SECONDS: Final = 45.0
"""For a replica to end after SIGTERM, before it is killed; its own grace is 30 s unless set otherwise."""
SERVED_SECONDS: Final = 30.0
"""For HAProxy to notice that a replica is ready."""
_ANSWER_SECONDS: Final = 60.0
_BUSY_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.02
_FIRST_PORT, _LAST_PORT = 20_000, 30_000
"""Below those that systems take for outgoing connections: while a replica is away, no connection of somebody else's
may take its port, nor a health check connect to itself."""


def ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on.

    Raises:
        ServerError: there are not enough.
    """
    found: list[int] = []
    start = random.randrange(_FIRST_PORT, _LAST_PORT)  # noqa: S311 - so that two runs do not look at the same
    for port in (*range(start, _LAST_PORT), *range(_FIRST_PORT, start)):
        if len(found) == count:
            break
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    if len(found) < count:
        raise ServerError(f"expected {count} free ports from {_FIRST_PORT} to {_LAST_PORT}, found {len(found)}")
    return found


class Replica:
    """One service with a port of its own, started as often as it takes.

    Args:
        name: of it, and of its folder.
        port: of 127.0.0.1.
        home: folder for those of its starts, each with a log.
        variables: of the environment, over the inherited ones without ``SEXTANT_*``.
    """

    def __init__(self, name: str, port: int, home: Path, variables: Mapping[str, str]) -> None:
        self.name, self.port = name, port
        self._home, self._variables = home, dict(variables)
        self._starts = itertools.count(1)
        self._server: Server | None = None

    def start(self) -> None:
        """Start anew; does not wait."""
        self.close()
        command = [sys.executable, "-m", "bentoml", "serve", "serving.service:Sextant"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        home = self._home / self.name / f"start-{next(self._starts)}"
        self._server = Server(command, self.port, home, self._variables)
        self._server.__enter__()

    def wait_until_ready(self) -> float:
        """Ask until it is.

        Returns:
            Seconds from its start.

        Raises:
            ServerError: it ended, or is not in time.
        """
        return self._running.wait_until_ready(READY)

    def wait_until_answering(self) -> float:
        """Ask until it answers that it is ready; a question that hangs is waited for.

        Returns:
            Seconds from the call.

        Raises:
            ServerError: it does not.
        """
        began = time.monotonic()
        while (answer := ask(self.port, READY, _ANSWER_SECONDS)) != "200":
            if time.monotonic() > began + _ANSWER_SECONDS:
                raise ServerError(f"{self.name} does not come back, last answered {answer}{self.last_words()}")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - began

    def end(self) -> tuple[int, float]:
        """Send SIGTERM to the supervisor, as Kubernetes does, and wait; after `STOP_SECONDS` by force.

        Returns:
            The exit status, that of the signal below 0 if it took one, and the seconds that it took.
        """
        everyone = self.processes()
        began = time.monotonic()
        everyone[0].terminate()
        _, alive = psutil.wait_procs(everyone[:1], STOP_SECONDS)
        seconds = time.monotonic() - began
        _kill([*alive, *everyone[1:]])  # a worker that its supervisor has left behind would keep the port
        return int(everyone[0].wait()), seconds

    def kill(self) -> None:
        """Kill supervisor and workers with SIGKILL, the supervisor first, so that it replaces none."""
        _kill(self.processes())

    def kill_worker(self) -> None:
        """Kill the process that answers, which is the largest, and wait until it is gone."""
        _kill([max(self.processes()[1:], key=lambda process: process.memory_info().rss)])

    def pause(self) -> None:
        """Stop all its processes with SIGSTOP: connections are still accepted by the system, and not answered."""
        self._running.pause()

    def resume(self) -> None:
        """Let them go on."""
        self._running.resume()

    def processes(self) -> list[psutil.Process]:
        """Supervisor and workers; none before the first start and after the end."""
        return self._server.processes() if self._server is not None else []

    def last_words(self) -> str:
        """The end of its log."""
        return self._running.last_words()

    def close(self) -> None:
        """See to it that it is gone, at once: nobody asks it any more."""
        if self._server is not None:
            self.kill()
            self._server.__exit__(None, None, None)

    @property
    def _running(self) -> Server:
        if self._server is None:
            raise ServerError(f"{self.name} was not started")
        return self._server


class Pool:
    """Replicas behind HAProxy, all ready when the block begins.

    Args:
        count: of replicas.
        home: folder for their logs and HAProxy's.
        variables: ``SEXTANT_*`` for the replicas.

    Attributes:
        start_seconds: until all were ready, started at once.
    """

    def __init__(self, count: int, home: Path, variables: Mapping[str, str]) -> None:
        self.replicas = [
            Replica(f"replica-{number}", port, home, variables) for number, port in enumerate(ports(count), 1)
        ]
        self._home = home
        self.start_seconds = 0.0

    def __enter__(self) -> Self:
        """Start all of them, then HAProxy."""
        with contextlib.ExitStack() as stack:
            for replica in self.replicas:
                stack.callback(replica.close)
                replica.start()
            self.start_seconds = max(replica.wait_until_ready() for replica in self.replicas)
            named = {replica.name: replica.port for replica in self.replicas}
            self.proxy = stack.enter_context(Proxy(named, self._home / "haproxy"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all."""
        self._stack.close()

    @property
    def url(self) -> str:
        """Of all the replicas as one service."""
        return f"http://127.0.0.1:{self.proxy.port}"

    def processes(self) -> list[psutil.Process]:
        """Those of replicas and HAProxy."""
        ours = [process for replica in self.replicas for process in replica.processes()]
        return [*ours, *self.proxy.processes()]

    def wait_until_served(self, replica: Replica) -> float:
        """Wait until HAProxy gives requests to a replica (again); returns the seconds that it took."""
        return self.proxy.wait_until(
            lambda stats: stats[replica.name]["status"] == UP, f"{replica.name} is in service", SERVED_SECONDS
        )

    def in_flight(self, replica: Replica) -> int:
        """Requests that a replica has not answered yet, as HAProxy knows; waits a while for a moment with some."""
        end = time.monotonic() + _BUSY_SECONDS
        while not (count := int(self.proxy.stats()[replica.name]["scur"])) and time.monotonic() < end:
            pass
        return count


def settings() -> dict[str, str]:
    """What ``SEXTANT_*`` says here, for the replicas."""
    return {name: value for name, value in os.environ.items() if name.startswith("SEXTANT_")}


def _kill(processes: Sequence[psutil.Process]) -> None:
    """Kill in this order, and wait until all are dead; whoever started them may take note of it later."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    while any(_lives(process) for process in processes):
        time.sleep(_POLL_SECONDS)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
