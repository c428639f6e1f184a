"""``make bench``: Sextant and its peers side by side in one run, and the bars it is held to.

Each server runs on one core and the load generator on another. Within a repeat the servers of a case take turns of
half a second, the others stopped where they are (SIGSTOP), until each has had its seconds: what else the machine does
meets all of them alike, and ratios hold where absolute figures drift.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from loadtests.bars import LATENCY_CASE, MANY_CASE, METRICS_CASE, WORKERS_CASES
from loadtests.generator import closed_loop
from loadtests.measurements import Measurements
from loadtests.peers import EXTRA_PEERS, PEERS, Peer, Request
from loadtests.processes import ROOT, Server, ServerError, Usage, cores, free_port, interruptible, pinned
from loadtests.result import BUSY_LIMIT, Result, milliseconds
from loadtests.tables import bars_table, disturbed, draw, put_between_markers, report, summary
from loadtests.wire import Address, encode

RESULTS = ROOT / "loadtests" / "results"
ENVIRONMENTS = ROOT / "runs" / "venvs"
CONNECTIONS = 16
_IN_PROCESS = "onnxruntime alone"
_WARM_UP, _TURN_WARM_UP, _TURN = 3.0, 0.1, 0.5
"""Seconds: once for each server and case, before each turn, and of each turn."""
_PACKAGES = ("onnxruntime", "bentoml", "uvicorn", "uvloop", "httptools", "orjson", "numpy")
_EXTRA_PAYLOADS = ("digit-raw", "digit-json", "digit-png", "image-png", "sentiment-230")


@dataclass(frozen=True)
class Contender:
    """A peer as it is run here.

    Args:
        variables: of the environment, over the peer's own.
        pinned: to one core; else it has all, and so has the generator.
    """

    name: str
    title: str
    peer: Peer
    variables: Mapping[str, str] = field(default_factory=dict)
    pinned: bool = True


@dataclass(frozen=True)
class Case:
    """One payload sent to some contenders, one after another.

    Args:
        main: one row of the comparison; the others answer a question of their own.
    """

    name: str
    payload: str
    connections: int
    contenders: tuple[Contender, ...]
    main: bool = True


def contender(peer: Peer) -> Contender:
    """A peer as it is, titled with the version of what it stands on."""
    return Contender(peer.name, f"{peer.title} ({peer.package} {_version(peer)})", peer)


def main_cases(contenders: Sequence[Contender], names: Sequence[str] = ()) -> list[Case]:
    """Every payload (or those named) to every contender that takes it."""
    every = dict.fromkeys(payload for one in contenders for payload in one.peer.requests)
    return [
        Case(payload, payload, CONNECTIONS, tuple(one for one in contenders if payload in one.peer.requests))
        for payload in names or every
    ]


def further_cases(contenders: Sequence[Contender]) -> list[Case]:
    """Many connections, one connection, metrics on and off, two workers and one."""
    by_name = {one.name: one for one in contenders}
    ours = by_name["sextant"]
    beside = tuple(by_name[name] for name in ("sextant", "bare-asgi", "fastapi") if name in by_name)
    silent = Contender("no-metrics", "Sextant without metrics", ours.peer, {"SEXTANT_METRICS": "false"})
    one, two = (
        Contender(
            word, f"Sextant, {word} worker{'s' * (word == 'two')}", ours.peer, {"SEXTANT_WORKERS": count}, pinned=False
        )
        for word, count in (("one", "1"), ("two", "2"))
    )
    return [
        Case(MANY_CASE, "image-png", 64, beside, main=False),
        Case(LATENCY_CASE, "digit-raw", 1, beside, main=False),
        Case(METRICS_CASE, "digit-raw", CONNECTIONS, (ours, silent), main=False),
        *(Case(name, payload, CONNECTIONS, (one, two), main=False) for payload, name in WORKERS_CASES.items()),
    ]


class Turns:
    """What came of a server's turns in one case and repeat."""

    def __init__(self) -> None:
        self._results: list[Result] = []
        self._cpu_seconds = 0.0
        self._usage = Usage(0, 0, 0, 0)

    def add(self, result: Result, before: Usage, after: Usage) -> None:
        """Take note of one turn."""
        self._results.append(result)
        self._cpu_seconds += after.cpu_seconds - before.cpu_seconds
        self._usage = after

    def figures(self) -> dict[str, Any]:
        """All turns together."""
        results, usage = self._results, self._usage
        seconds = sum(result.window[1] for result in results)
        answers = sum(len(result.done) for result in results)
        response = milliseconds(np.concatenate([result.response_seconds for result in results]))
        status: Counter[str] = Counter()
        errors: Counter[str] = Counter()
        for result in results:
            status.update({str(number): count for number, count in result.by_status.items()})
            errors.update(result.errors)
        busy = sum(result.busy * result.window[1] for result in results) / seconds
        return {
            "requests_per_second": round(
                sum(result.requests_per_second * result.window[1] for result in results) / seconds, 2
            ),
            "p50_ms": response["p50"],
            "p99_ms": response["p99"],
            "failed": sum(result.failed for result in results),
            "cpu_ms": round(1000 * self._cpu_seconds / answers, 4) if answers else None,
            "server_busy": round(self._cpu_seconds / seconds, 3),
            "worker_mb": round(usage.largest_bytes / 1e6, 1),
            "resident_mb": round(usage.resident_bytes / 1e6, 1),
            "processes": usage.processes,
            "generator_busy": round(busy, 3),
            "generator_bound": busy > BUSY_LIMIT,
            "status": dict(status),
            "errors": dict(errors),
            "unanswered": sum(result.unanswered for result in results),
            "response_ms": response,
        }


class Bench:
    """One run: the servers, the cases, and what was measured so far.

    Args:
        cases: in the tables' order.
        in_process: seconds for each model and batch of onnxruntime alone; 0 leaves it out.
        starts: how often ``make serve`` is timed.
        home: folder for the servers' logs and files.
    """

    def __init__(
        self, cases: Sequence[Case], *, repeats: int, seconds: float, in_process: float, starts: int, home: Path
    ) -> None:
        self._cases = list(cases)
        self._contenders = list({one.name: one for case in cases for one in case.contenders}.values())
        self._in_process, self._starts, self._home = in_process, starts, home
        self._turns = max(1, round(seconds / _TURN))
        self._server_cores, self._own_cores = cores()
        self._servers: dict[str, Server] = {}
        self._warm: set[tuple[str, str]] = set()
        options = {"connections": CONNECTIONS, "repeats": repeats, "seconds": seconds, "whole": bool(starts)}
        self.found = Measurements(machine=_machine(), options=options)
        for case in cases:
            self.found.cases[case.name] = {"payload": case.payload, "connections": case.connections, "main": case.main}

    def run(self) -> Measurements:
        """Measure everything; a server that cannot be run is told of in ``servers``, and the others go on."""
        repeats = self.found.options["repeats"]
        cells = self._turns * sum(len(case.contenders) for case in self._cases) + bool(self._in_process)
        total = self._starts + len(self._contenders) + repeats * cells
        with tqdm(total=total, unit=" steps", disable=None) as progress, contextlib.ExitStack() as stack:
            for _ in self._steps(progress, range(self._starts), lambda _: "make serve, to ready"):
                self.found.start_seconds.append(self._time_to_start())
            for one in self._steps(progress, self._contenders, lambda one: f"starting {one.name}"):
                self._start(one, stack)
            for repeat in range(repeats):
                self._round(repeat, progress)
        return self.found

    def _round(self, repeat: int, progress: tqdm[Any]) -> None:
        """Every case once."""
        for case in _in_order(self._cases):
            turns = {one.name: Turns() for one in case.contenders if one.name in self._servers}
            for turn in range(self._turns):
                first = (repeat + turn) % len(case.contenders)
                order = (*case.contenders[first:], *case.contenders[:first])
                for one in self._steps(progress, order, lambda one: f"{repeat + 1}: {case.name} → {one.name}"):  # noqa: B023
                    if one.name in turns:
                        self._take_turn(case, one, turns[one.name])
            for name, taken in turns.items():
                self.found.rows.append({"repeat": repeat, "case": case.name, "server": name, **taken.figures()})
            if self._in_process and case.payload == "sentiment-230" and case.main:
                for _ in self._steps(progress, [_IN_PROCESS], lambda name: f"{repeat + 1}: {name}"):
                    self._measure_in_process(repeat)

    @staticmethod
    def _steps(progress: tqdm[Any], what: Sequence[Any], told: Any) -> Iterator[Any]:  # noqa: ANN401
        for one in what:
            progress.set_description_str(told(one))
            yield one
            progress.update()

    def _time_to_start(self) -> float:
        """Seconds from ``make serve``, everything installed, to ready."""
        port = free_port()
        ready = Request("GET", "/readyz", "", b"")
        with Server(["make", "serve", f"PORT={port}"], port, self._home / "make-serve", {}) as server:
            return server.wait_until_ready(ready)

    def _start(self, one: Contender, stack: contextlib.ExitStack) -> None:
        told: dict[str, Any] = {"title": one.title}
        self.found.servers[one.name] = told
        python, port = _python(one.peer), free_port()
        variables = {**one.peer.variables, **one.variables}
        server = Server(
            one.peer.command(python, port),
            port,
            self._home / one.name,
            variables,
            self._server_cores if one.pinned else None,
        )
        try:
            stack.enter_context(server)
            told["ready_seconds"] = round(server.wait_until_ready(next(iter(one.peer.requests.values()))), 2)
        except (ServerError, OSError) as error:
            told["error"] = str(error)
            tqdm.write(f"{one.name}: {error}", file=sys.stderr)
        else:
            server.pause()
            self._servers[one.name] = server

    def _take_turn(self, case: Case, one: Contender, turns: Turns) -> None:
        """Put the case's load on one server for a moment."""
        server, request = self._servers[one.name], one.peer.requests[case.payload]
        address = Address("127.0.0.1", server.port)
        message = encode(address, request.method, request.path, request.body, request.media_type)
        seconds = self.found.options["seconds"] / self._turns
        warm_up = _TURN_WARM_UP if (case.name, one.name) in self._warm else min(_WARM_UP, 4 * seconds * self._turns)
        self._warm.add((case.name, one.name))
        server.resume()
        with pinned(self._own_cores if one.pinned else None):
            closed_loop(address, [message], connections=case.connections, seconds=warm_up)
            before = server.usage()
            result = closed_loop(address, [message], connections=case.connections, seconds=seconds)
            turns.add(result, before, server.usage())
        server.pause()

    def _measure_in_process(self, repeat: int) -> None:
        command = [sys.executable, "-m", "loadtests.peers.in_process", "--seconds", str(self._in_process)]
        with pinned(self._server_cores):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise ServerError(f"{_IN_PROCESS} failed:\n{done.stderr}")
        for name, figures in json.loads(done.stdout).items():
            self.found.in_process.append({"repeat": repeat, "name": name, **figures})


def _in_order(cases: Sequence[Case]) -> list[Case]:
    """The cases that are held against onnxruntime alone last, next to it."""
    last = {("sentiment-230", True): 1, ("image-png", False): 2}
    return sorted(cases, key=lambda case: last.get((case.payload, case.main), 0))


def _python(peer: Peer) -> str:
    return str(ENVIRONMENTS / peer.environment / "bin" / "python") if peer.environment else sys.executable


def _version(peer: Peer) -> str:
    """Of the package a peer stands on, in its own environment."""
    if not peer.environment:
        return importlib.metadata.version(peer.package)
    code = f"import importlib.metadata as found; print(found.version({peer.package!r}))"
    try:
        done = subprocess.run([_python(peer), "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "not installed"
    return done.stdout.strip()


def _machine() -> dict[str, Any]:
    """What the figures hold for."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "load_before": round(os.getloadavg()[0], 2),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--extra", action="store_true", help="the peers with environments of their own (bench-peers)")
    parser.add_argument("--peers", help="some of them, by name, separated by commas")
    parser.add_argument("--payloads", help="some of them, by name, separated by commas")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="each server for a moment with its first payload")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="loadtests/results, or of a run in part runs/bench"
    )
    parser.add_argument(
        "--readme", action="store_true", help="measure nothing: render the results again, and put them into README.md"
    )
    return parser


def _chosen(asked: str | None, known: Sequence[str], what: str) -> list[str]:
    """The names asked for, or all.

    Raises:
        ValueError: an unknown one.
    """
    names = [name.strip() for name in asked.split(",")] if asked is not None else list(known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no {what} {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    return names


def plan(options: argparse.Namespace) -> list[Case]:
    """The cases that the command line asks for.

    Raises:
        ValueError: unknown names, or numbers that cannot be.
    """
    if options.repeats < 1 or not 0 < options.seconds < math.inf:
        raise ValueError(f"expected at least 1 repeat and above 0 s; received {options.repeats}, {options.seconds:g} s")
    own = {peer.name: peer for peer in PEERS}
    known = {name: own[name] for name in ("sextant", "bare-asgi")} | {peer.name: peer for peer in EXTRA_PEERS}
    known = known if options.extra else own
    peers = [known[name] for name in _chosen(options.peers, list(known), "peer")]
    served = list(dict.fromkeys(payload for peer in known.values() for payload in peer.requests))
    asked = options.payloads or (",".join(_EXTRA_PAYLOADS) if options.extra else None)
    wanted = _chosen(asked, served, "payload")
    contenders = [contender(peer) for peer in peers]
    if options.smoke:
        first = {one.name: next((name for name in wanted if name in one.peer.requests), "") for one in contenders}
        cases = [
            Case(name, name, CONNECTIONS, tuple(one for one in contenders if first[one.name] == name))
            for name in wanted
        ]
    else:
        cases = main_cases(contenders, wanted)
        if not options.extra and any(one.name == "sextant" for one in contenders):
            cases += [case for case in further_cases(contenders) if case.payload in wanted]
    return [case for case in cases if case.contenders]


def write(found: Measurements, folder: Path, name: str) -> None:
    """JSON, tables and chart, side by side."""
    found.write(folder / f"{name}.json")
    (folder / f"{name}.md").write_text(report(found, f"{name}.png"), "utf-8")
    draw(found, folder / f"{name}.png")


def main(arguments: Sequence[str]) -> int:
    """0, 1 when a server could not be run, 2 for bad use; a bar that is missed is shown."""
    parser = _parser()
    options = parser.parse_args(arguments)
    name = "bench-peers" if options.extra else "bench"
    if options.readme:
        found = Measurements.read(RESULTS / f"{name}.json")
        write(found, RESULTS, name)
        where = RESULTS.relative_to(ROOT)
        put_between_markers(ROOT / "README.md", summary(found, f"{where}/{name}.md", f"{where}/{name}.png"))
        return 0
    try:
        cases = plan(options)
    except ValueError as error:
        parser.error(str(error))
    part = bool(options.smoke or options.peers or options.payloads)
    whole = not part and not options.extra
    folder = options.output or (ROOT / "runs" / "bench" if part else RESULTS)
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        bench = Bench(
            cases,
            repeats=1 if options.smoke else options.repeats,
            seconds=0.3 if options.smoke else options.seconds,
            in_process=0.25 if whole else 0,
            starts=options.repeats if whole else 0,
            home=Path(home),
        )
        found = bench.run()
    write(found, folder, name)
    if not options.smoke:
        print(bars_table(found))
        print(disturbed(found))
    print(f"{folder / name}.md, .png, .json")
    return 1 if any("error" in told for told in found.servers.values()) else 0


if __name__ == "__main__":
    sys.exit(interruptible(main, sys.argv[1:]))
