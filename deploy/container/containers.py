"""Containers as they should be run: root read-only, another user than root, no capability, nothing to gain one by."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

from deploy.container.steps import run

CONFINED: Final = Path(__file__).resolve().parent / "confined.sh"
LOCKDOWN: Final = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
"""Options of docker and podman."""
PORT: Final = 3000
_POLL_SECONDS: Final = 0.02
_STOP_SECONDS: Final = 60.0


class ContainerError(RuntimeError):
    """A container did not come up, or did not end; the message ends with its last words."""


class Container(ABC):
    """A container of the service that runs, from start to end; use as a context manager.

    Args:
        port: of 127.0.0.1 at which it is asked.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        """Start; does not wait."""
        self._started = time.monotonic()
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it by force if it still runs, and leave nothing of it."""
        self._remove()

    def wait_until_ready(self, seconds: float = 120.0) -> float:
        """Ask ``/readyz`` until it answers 200.

        Returns:
            Seconds since the start.

        Raises:
            ContainerError: it ended, or was not ready in time.
        """
        answer = "nothing"
        while time.monotonic() < self._started + seconds:
            if not self.running:
                raise ContainerError(f"it ended before it was ready{self._last_words()}")
            answer = _readiness(self.port)
            if answer == "200":
                return time.monotonic() - self._started
            time.sleep(_POLL_SECONDS)
        raise ContainerError(f"not ready after {seconds:g} s, last answered {answer}{self._last_words()}")

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether its process 1 is still there."""

    @abstractmethod
    def execute(self, command: Sequence[str]) -> str:
        """Run a command within, as its user; returns what it printed.

        Raises:
            deploy.container.steps.StepError: it ended with another status than 0.
        """

    @abstractmethod
    def stop(self) -> tuple[int, float]:
        """Send SIGTERM to process 1.

        Returns:
            Its status, and the seconds that it took to end.

        Raises:
            ContainerError: it did not end within a minute.
        """

    @abstractmethod
    def log(self) -> str:
        """What it has printed."""

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _remove(self) -> None: ...

    def _last_words(self, lines: int = 15) -> str:
        return "".join(f"\n    {line}" for line in self.log().splitlines()[-lines:])


class DockerContainer(Container):
    """One that docker or podman runs.

    Args:
        tool: the program.
        image: its name.
        port: to publish the service at.
        variables: of the environment, over the image's.
        volume: folder for /models, if any.
    """

    def __init__(self, tool: str, image: str, port: int, variables: Mapping[str, str], volume: Path | None) -> None:
        super().__init__(port)
        options = [*LOCKDOWN, f"--publish=127.0.0.1:{port}:{PORT}"]
        options += [f"--env={name}={value}" for name, value in variables.items()]
        options += [] if volume is None else [f"--volume={volume}:/models:ro"]
        self._tool = tool
        self._command = [tool, "run", "--detach", *options, image]
        self._name = ""

    @property
    def running(self) -> bool:
        """Whether the tool says so."""
        return self._told("{{.State.Running}}") == "true"

    def execute(self, command: Sequence[str]) -> str:
        """By ``exec``."""
        return run([self._tool, "exec", self._name, *command])

    def stop(self) -> tuple[int, float]:
        """By ``stop``, which sends the image's STOPSIGNAL, and after a while SIGKILL: then the status is 137."""
        began = time.monotonic()
        run([self._tool, "stop", f"--time={_STOP_SECONDS:.0f}", self._name])
        return int(self._told("{{.State.ExitCode}}")), time.monotonic() - began

    def log(self) -> str:
        """Of the tool's own log."""
        return run(["sh", "-c", 'exec "$0" logs "$1" 2>&1', self._tool, self._name])

    def _start(self) -> None:
        self._name = run(self._command).strip()

    def _remove(self) -> None:
        if self._name:
            run([self._tool, "rm", "--force", self._name])

    def _told(self, form: str) -> str:
        return run([self._tool, "inspect", f"--format={form}", self._name]).strip()


class ConfinedContainer(Container):
    """One in a root file system on this machine, in namespaces of its own but for the network; needs root.

    Args:
        root: the file system.
        config: of the image: ``User``, ``WorkingDir``, ``Env`` and ``Entrypoint``.
        port: to listen on.
        variables: of the environment, over the image's.
        volume: folder for /models, if any.
        log: file for what it prints.
    """

    def __init__(
        self,
        root: Path,
        config: Mapping[str, Any],
        port: int,
        variables: Mapping[str, str],
        volume: Path | None,
        log: Path,
    ) -> None:
        super().__init__(port)
        # The network is this machine's, where others may listen on the image's port.
        own = {"SEXTANT_HOST": "127.0.0.1", "SEXTANT_PORT": str(port), **variables}
        self._user, self._folder = config["User"], config["WorkingDir"]
        self._variables = [*config["Env"], *(f"{name}={value}" for name, value in own.items())]
        self._log = log
        self._command = [
            *("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
            *("sh", str(CONFINED), str(root), str(volume or ""), self._user, self._folder),
            *(*self._variables, *config["Entrypoint"]),
        ]
        self._process: psutil.Popen | None = None

    @property
    def running(self) -> bool:
        """Whether unshare still waits for it."""
        return self._unshare.poll() is None

    def execute(self, command: Sequence[str]) -> str:
        """By nsenter, with the same rights."""
        user, _, group = self._user.partition(":")
        enter = ["nsenter", f"--target={self._first.pid}", "--mount", "--pid", "--ipc", "--uts", "--root"]
        rights = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
        rights += ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
        environment = ["env", "--ignore-environment", f"--chdir={self._folder}", *self._variables]
        return run([*enter, *rights, *environment, *command])

    def stop(self) -> tuple[int, float]:
        """By a signal; unshare ends as process 1 does."""
        began = time.monotonic()
        self._first.send_signal(signal.SIGTERM)
        try:
            status = self._unshare.wait(_STOP_SECONDS)
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            raise ContainerError(f"not ended {_STOP_SECONDS:.0f} s after SIGTERM{self._last_words()}") from None
        return int(status), time.monotonic() - began

    def log(self) -> str:
        """Of the file."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as output:
            self._process = psutil.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"]},
                start_new_session=True,
            )

    def _remove(self) -> None:
        if self._process is not None and self.running:
            self._process.kill()  # --kill-child: process 1 goes with it, and with that all of its namespace
            self._process.wait()

    @property
    def _unshare(self) -> psutil.Popen:
        assert self._process is not None, "not started"  # noqa: S101 (a context manager is entered before it is used)
        return self._process

    @property
    def _first(self) -> psutil.Process:
        """Process 1 of the container."""
        children = self._unshare.children()
        if not children:
            raise ContainerError(f"it has ended{self._last_words()}")
        first: psutil.Process = children[0]
        return first


def _readiness(port: int) -> str:
    """The status of ``/readyz``, or why there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
