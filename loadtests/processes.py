"""Servers as processes: started on chosen cores, ready or not, paused, weighed, and stopped to the last child."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from loadtests.peers import Request

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 120.0
INTERRUPTED = 130
"""Status of a command that was ended, as shells give it for Ctrl-C."""
_POLL_SECONDS = 0.05
_STOP_SECONDS = 20.0
_NOT_HANDED_ON = ("SEXTANT_", "MAKE", "MFLAGS", "PORT", "BENTOML_", "TQDM_")


class ServerError(RuntimeError):
    """A server did not come up or went away; the message ends with its last words."""


@dataclass(frozen=True)
class Usage:
    """What a server and all its children hold at one moment.

    Args:
        cpu_seconds: user and system time so far.
        resident_bytes: of all processes together; what they share counts for each.
        largest_bytes: resident memory of the largest process, the worker.
        processes: how many there are.
    """

    cpu_seconds: float
    resident_bytes: int
    largest_bytes: int
    processes: int


def cores() -> tuple[set[int] | None, set[int] | None]:
    """The core for the server and the one for the generator; (None, None) where there are not two to pin to."""
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        return None, None
    first, second, *_ = sorted(os.sched_getaffinity(0))
    return {first}, {second}


@contextlib.contextmanager
def pinned(to: set[int] | None) -> Iterator[None]:
    """Run the block, and what processes it starts, on these cores alone (None: as before)."""
    if to is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def interruptible(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run a command that starts processes. Ended, by Ctrl-C or SIGTERM, it leaves none of them behind.

    Returns:
        What ``main`` returns, or `INTERRUPTED`.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
    # As Ctrl-C, which an event loop lets through, too.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return main(arguments)
    except KeyboardInterrupt:
        # It may have come after a process was started and before there was a block to end it.
        this = psutil.Process()
        _end(this.children(), this.children(recursive=True))
        return INTERRUPTED


def _end(roots: Sequence[psutil.Process], family: Sequence[psutil.Process]) -> None:
    """Ask processes to end, and wait for them and all theirs; what is there after a while is killed."""
    for process in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, _STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, _STOP_SECONDS)


class Server:
    """A server's process and its children, from start to stop; use as a context manager.

    Args:
        command: program and arguments; run in the repository root, in a session of its own.
        port: where it will listen on 127.0.0.1.
        home: folder of its own, for its log and its files: BentoML servers that share one clear each other's metrics.
        variables: of the environment, over the inherited ones; none for Sextant, BentoML or make are inherited.
        to: cores for it and its children (None: all).
    """

    def __init__(
        self, command: Sequence[str], port: int, home: Path, variables: Mapping[str, str], to: set[int] | None = None
    ) -> None:
        self.port = port
        self._log = home / "log.txt"
        self._command = list(command)
        self._to = to
        self._started = 0.0
        self._process: psutil.Popen | None = None
        home.mkdir(parents=True, exist_ok=True)
        own = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(home / "bentoml")}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_HANDED_ON)}
        self._environment = {**inherited, **own, **variables}

    def __enter__(self) -> Self:
        """Start; does not wait."""
        with self._log.open("wb") as log, pinned(self._to):  # a child runs on the cores its parent had when it forked
            self._started = time.monotonic()
            self._process = psutil.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop: by request, after a while by force."""
        processes = self.processes()
        self.resume()
        _end([self._root], processes)
        self._root.wait()

    def wait_until_ready(self, request: Request, seconds: float = START_SECONDS) -> float:
        """Ask until the answer is 200.

        Returns:
            Seconds from the start of the process.

        Raises:
            ServerError: it ended, or did not answer so in time.
        """
        answer = "nothing"
        while time.monotonic() < self._started + seconds:
            if not self.running:
                raise ServerError(f"ended with status {self._root.returncode} before it was ready{self.last_words()}")
            answer = ask(self.port, request)
            if answer == "200":
                return time.monotonic() - self._started
            time.sleep(_POLL_SECONDS)
        raise ServerError(f"not ready after {seconds:g} s, last answered {answer}{self.last_words()}")

    @property
    def running(self) -> bool:
        """Whether the process that was started is still there."""
        return self._root.poll() is None

    def processes(self) -> list[psutil.Process]:
        """The process and all its descendants."""
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def pause(self) -> None:
        """Stop every process where it is, so that a server that waits for its turn costs the others nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let all go on."""
        self._signal(signal.SIGCONT)

    def usage(self) -> Usage:
        """Weigh the process and its descendants."""
        cpu, resident = 0.0, [0]
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                cpu += times.user + times.system + times.children_user + times.children_system
                resident.append(process.memory_info().rss)
        return Usage(cpu, sum(resident), max(resident), len(resident) - 1)

    def last_words(self, lines: int = 12) -> str:
        """The end of the log, indented on lines of its own."""
        words = self._log.read_text(errors="replace").splitlines()[-lines:]
        return "".join(f"\n    {line}" for line in words)

    @property
    def _root(self) -> psutil.Popen:
        assert self._process is not None, "not started"  # noqa: S101 (a context manager is entered before it is used)
        return self._process

    def _signal(self, number: int) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def ask(port: int, request: Request, seconds: float = 10.0) -> str:
    """Send one request to 127.0.0.1; the status of the answer in words, or why there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    headers = {"Content-Type": request.media_type} if request.media_type else {}
    try:
        connection.request(request.method, request.path, request.body, headers)
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
