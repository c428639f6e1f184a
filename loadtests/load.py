"""One load: what shall be asked of a server, checked, and the Locust process that does it.

Locust patches the standard library for gevent as soon as it is imported. What conducts a load test, samples the server
and draws pictures does not want that: it runs Locust beside itself, and reads what was recorded.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from loadtests.clock import Arrivals
from loadtests.mix import GROUPS
from loadtests.processes import ROOT, free_port, pinned
from loadtests.shapes import stages
from loadtests.slo import ALL

LOCUSTFILE: Final = ROOT / "loadtests" / "locustfile.py"
_POLL_SECONDS: Final = 0.1
_OVERTIME_SECONDS: Final = 120.0
"""Beyond the length of a run: importing, drawing the payloads, waiting for the last answers."""
_STOP_SECONDS: Final = 15.0


class LoadError(ValueError):
    """A load that cannot be; the message says what was received and what was expected."""


class GeneratorError(RuntimeError):
    """Locust ended without a recording; the message ends with its last words."""


@dataclass(frozen=True)
class Load:
    """What Locust shall do.

    Args:
        shape: of `loadtests.shapes.SHAPES`.
        route: of `loadtests.mix.GROUPS`.
        rate: requests a second of the open loop, at a factor of 1.
        seconds: length of the run; the shape's own for None.
        loop: whether requests follow the clock or the answers.
        clients: users of the closed loop, at a factor of 1.
        arrivals: of the open loop.
        processes: that generate, here.
        workers: of Locust on other machines, that generate instead; 0 for none.
        bind: address and port at which Locust's master waits for them.
        seed: of payloads, their order and Poisson arrivals.

    Raises:
        LoadError: it cannot be.
    """

    shape: str = "smoke"
    route: str = ALL
    rate: float = 100.0
    seconds: float | None = None
    loop: Literal["open", "closed"] = "open"
    clients: int = 16
    arrivals: Arrivals = "constant"
    processes: int = 1
    workers: int = 0
    bind: str = "0.0.0.0:5557"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.route not in GROUPS:
            raise LoadError(f'unknown route "{self.route}"; expected one of {", ".join(GROUPS)}')
        above_zero = {"rate": self.rate, "clients": self.clients, "processes": self.processes}
        for name, value in above_zero.items():
            if not 0 < value < math.inf:
                raise LoadError(f"{name}: expected a number above 0, received {value:g}")
        if self.workers < 0 or not self.bind.rpartition(":")[2].isdecimal():
            raise LoadError(f"expected workers at ADDRESS:PORT, received {self.workers} at {self.bind!r}")
        try:
            stages(self.shape, self.seconds)
        except ValueError as error:
            raise LoadError(str(error)) from None

    @property
    def routes(self) -> tuple[str, ...]:
        """That are asked."""
        return GROUPS[self.route]

    @property
    def length(self) -> float:
        """Seconds."""
        return stages(self.shape, self.seconds)[-1].end

    def __str__(self) -> str:
        load = f"{self.rate:g} requests/s" if self.loop == "open" else f"{self.clients} users"
        return f"{self.shape}, {self.route}: {load} for {self.length:g} s"

    def command(self, url: str, record: Path) -> list[str]:
        """Locust's command line, to be run in the repository's root.

        Args:
            url: of the server.
            record: file for what is found.
        """
        options = {
            "host": url,
            "loop": self.loop,
            "shape": self.shape,
            "route": self.route,
            "rate": repr(self.rate),
            "clients": self.clients,
            "arrivals": self.arrivals,
            "seed": self.seed,
            "record": record,
            **({"minutes": repr(self.seconds / 60)} if self.seconds is not None else {}),
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        if self.workers:
            address, _, own = self.bind.rpartition(":")
            words += ["--master", f"--expect-workers={self.workers}"]
            words += [f"--master-bind-host={address}", f"--master-bind-port={own}"]
        elif self.processes > 1:
            # A port of its own, on this machine alone: another Locust may have the usual one.
            port = free_port()
            words += [f"--processes={self.processes}", "--master-bind-host=127.0.0.1"]
            words += [f"--master-bind-port={port}", f"--master-port={port}"]
        quiet = ["--headless", "--only-summary", "--loglevel=WARNING"]
        return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE.relative_to(ROOT)), *quiet, *words]


def generate(
    load: Load, url: str, log: Path, on: set[int] | None = None, tick: Callable[[float], object] = lambda _: None
) -> dict[str, Any]:
    """Put a load on a server and wait for its end.

    Args:
        load: to put on it.
        url: of the server.
        log: file that takes what Locust says.
        on: cores to generate on; all for None.
        tick: called several times a second with the seconds since Locust was started.

    Returns:
        What ``run.json`` holds, without the server's side.

    Raises:
        GeneratorError: there is no recording.
    """
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        record = Path(folder) / "run.json"
        status = _run(load.command(url, record), log, on, tick, load.length + _OVERTIME_SECONDS)
        # Locust's status says whether any request failed, which is for the verdict to judge.
        with contextlib.suppress(FileNotFoundError):
            document: dict[str, Any] = json.loads(record.read_text("utf-8"))
            document["about"]["machine"]["cores"] = _cores()  # Locust saw only those that it was given
            return document
    words = log.read_text("utf-8", errors="replace").split("\n")
    last = "".join(f"\n    {line}" for line in words[-12:] if line.strip())
    raise GeneratorError(f"Locust ended with status {status} and recorded nothing{last}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    command: list[str], log: Path, on: set[int] | None, tick: Callable[[float], object], at_most: float
) -> int | None:
    """Run a command to its end, or to ``at_most`` seconds; returns its status, None if it was ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output, pinned(on):
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    began = time.monotonic()
    try:
        while process.poll() is None and time.monotonic() - began < at_most:
            tick(time.monotonic() - began)
            time.sleep(_POLL_SECONDS)
        return process.poll()
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """By request, which leaves Locust time to record, and after a while by force, with its own children."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the session is its own
            process.wait()
