"""``make overload ROUTE=sentiment-230``: three times as much as the service can do, by the clock, and what comes of it.

First the capacity, in a closed loop. Then one open-loop run: a quiet phase at 0.3 × capacity, the overload, and quiet
again. A service that copes goes on answering at its capacity, refuses the rest at once, forgets nobody, and is its
old self as soon as the storm is over.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from loadtests.bars import Bar
from loadtests.clock import arrival_times
from loadtests.generator import closed_loop, open_loop
from loadtests.peers import PEERS
from loadtests.processes import Server, ServerError, cores, free_port, interruptible, pinned
from loadtests.result import Floats, Result, milliseconds
from loadtests.tables import bar_lines
from loadtests.wire import Address, encode
from serving.settings import Settings

RESULTS = Path(__file__).resolve().parent / "results"
QUIET = 0.3
"""Share of the capacity that is asked for before and after."""
QUIET_SECONDS = 5.0
WINDOW_SECONDS = 0.25
NORMAL = 1.5
"""Latency is normal again when the median of a window is within so many times the unloaded one …"""
NORMAL_WINDOWS = 4
"""… in so many windows on end."""
_SAMPLE_SECONDS = 0.25
_CONNECTIONS = 16


@dataclass(frozen=True)
class Overload:
    """One run, and where its phases lie.

    Args:
        capacity: requests/s of the closed loop.
        result: of the open loop.
        start: second at which the overload begins.
        end: second at which it ends.
        memory_times: (samples,) seconds.
        memory: (samples,) resident MB of the worker.
        deadline: seconds within which accepted requests must be answered.
    """

    capacity: float
    result: Result
    start: float
    end: float
    memory_times: Floats
    memory: Floats
    deadline: float

    def within(self, times: Floats, start: float, end: float) -> NDArray[np.bool_]:
        """Which of ``times`` lie in [start, end)."""
        inside: NDArray[np.bool_] = (times >= start) & (times < end)
        return inside

    def seconds_of(self, status: int) -> Floats:
        """(answers,) response times of the requests of the overload that were answered so."""
        chosen = self.within(self.result.due, self.start, self.end) & (self.result.status == status)
        response: Floats = (self.result.done - self.result.due)[chosen]
        return response

    @property
    def goodput(self) -> float:
        """Answers 200 a second during the overload."""
        good = self.within(self.result.done, self.start, self.end) & (self.result.status == 200)
        return float(np.sum(good)) / (self.end - self.start)

    @property
    def unloaded_p50(self) -> float:
        """Median response of the quiet phase before, its first second left out."""
        times = (self.result.done - self.result.due)[self.within(self.result.due, min(1.0, self.start / 2), self.start)]
        return float(np.median(times)) if times.size else math.nan

    @property
    def recovery_seconds(self) -> float:
        """From the end of the overload to the first of `NORMAL_WINDOWS` normal windows; infinite if there is none."""
        normal = 0
        for edge, answered in self.windows():
            normal = normal + 1 if answered else 0
            if normal == NORMAL_WINDOWS:
                return edge - (NORMAL_WINDOWS - 1) * WINDOW_SECONDS - self.end
        return math.inf

    def windows(self) -> Iterator[tuple[float, bool]]:
        """Start of each window after the overload, and whether all its requests were answered 200 at normal latency."""
        response = self.result.done - self.result.due
        edge = self.end
        while edge + WINDOW_SECONDS <= self.result.window[1] + 1e-6:
            chosen = self.within(self.result.due, edge, edge + WINDOW_SECONDS)
            good = bool(chosen.any()) and bool(np.all(self.result.status[chosen] == 200))
            yield edge, good and float(np.median(response[chosen])) <= NORMAL * self.unloaded_p50
            edge += WINDOW_SECONDS

    def memory_mb(self, start: float, end: float) -> float:
        """Median resident MB of the worker between two times."""
        chosen = self.memory[self.within(self.memory_times, start, end)]
        return float(np.median(chosen)) if chosen.size else math.nan

    def summary(self) -> dict[str, Any]:
        """The figures, for JSON."""
        third = (self.end - self.start) / 3
        answers = {int(status): self.seconds_of(int(status)) for status in np.unique(self.result.status)}
        return {
            "capacity": round(self.capacity, 1),
            "goodput": round(self.goodput, 1),
            "offered": round(float(np.sum(self.within(self.result.due, self.start, self.end))) / (3 * third), 1),
            "answers": {str(status): len(times) for status, times in answers.items()},
            "response_ms": {str(status): milliseconds(times) for status, times in answers.items()},
            "errors": dict(self.result.errors),
            "unanswered": self.result.unanswered,
            "without_retry_after": self.result.missing_headers,
            "unloaded_p50_ms": _figure(self.unloaded_p50 * 1000),
            "recovery_seconds": _figure(self.recovery_seconds),
            "worker_mb": {
                "before": _figure(self.memory_mb(0, self.start)),
                "first third": _figure(self.memory_mb(self.start, self.start + third)),
                "last third": _figure(self.memory_mb(self.end - third, self.end)),
                "after": _figure(self.memory_mb(self.end + 1, math.inf)),
            },
            "connections": self.result.connections,
            "generator": {name: self.result.summary()[name] for name in ("sent_late_ms", "generator_busy", "valid")},
        }

    def bars(self) -> list[Bar]:
        """What an overloaded service must hold to."""
        told = self.summary()
        refused, accepted = (milliseconds(self.seconds_of(status))["p99"] for status in (429, 200))
        others = sum(count for status, count in told["answers"].items() if status not in {"200", "429"})
        forgotten = self.result.unanswered + sum(self.result.errors.values())
        before, after = (told["worker_mb"][name] for name in ("first third", "last third"))
        grown = [after / before] if before and after else []
        return [
            Bar("goodput over capacity", "≥", 0.9, [self.goodput / self.capacity], "×"),
            Bar("refusals (429), p99", "≤", 50, [] if refused is None else [refused], "ms"),
            Bar("refusals without Retry-After", "≤", 0, [self.result.missing_headers], "answers"),
            Bar("answers other than 200 and 429", "≤", 0, [others], "answers"),
            Bar("accepted requests, p99", "≤", self.deadline * 1000, [] if accepted is None else [accepted], "ms"),
            Bar("requests without an answer", "≤", 0, [forgotten], "requests"),
            Bar("worker's memory, last third of the overload over its first", "≤", 1.05, grown, "×"),
            Bar("seconds until latency is normal again", "≤", 2, [self.recovery_seconds], "s"),
        ]


def _figure(value: float) -> float | None:
    """To three places; None, which JSON can hold, in place of what is no number or infinite."""
    return round(value, 3) if math.isfinite(value) else None


def measure(
    address: Address,
    message: bytes,
    worker: int,
    *,
    factor: float,
    seconds: float,
    capacity_seconds: float,
    deadline: float,
) -> Overload:
    """Find the capacity of a server and put ``factor`` times as much on it for ``seconds``.

    Args:
        worker: id of the process whose memory is watched.
    """
    with tqdm(total=3, unit=" phases", disable=None) as progress:
        progress.set_description_str("warm-up")
        closed_loop(address, [message], connections=_CONNECTIONS, seconds=capacity_seconds / 2)
        progress.update()
        progress.set_description_str("capacity")
        found = closed_loop(address, [message], connections=_CONNECTIONS, seconds=capacity_seconds)
        capacity = found.requests_per_second
        progress.update()
        if not capacity:
            raise ServerError(f"nothing was answered 2xx: {found.line()}")
        progress.set_description_str(f"{factor:g} × {capacity:.0f}/s for {seconds:g} s")
        due = phases(
            [(QUIET * capacity, QUIET_SECONDS), (factor * capacity, seconds), (QUIET * capacity, QUIET_SECONDS)]
        )
        with _memory_of(worker) as samples:
            began = time.perf_counter()
            result = open_loop(
                address,
                [message],
                due,
                seconds=2 * QUIET_SECONDS + seconds,
                grace=deadline + 5,
                required={429: b"retry-after"},
            )
        progress.update()
    times, memory = np.array(samples).T if samples else np.empty((2, 0))
    return Overload(capacity, result, QUIET_SECONDS, QUIET_SECONDS + seconds, times - began, memory, deadline)


def phases(rates: Sequence[tuple[float, float]]) -> Floats:
    """When requests are due that come at one rate after another.

    Args:
        rates: requests a second, and for how many seconds.

    Returns:
        (requests,) float64 seconds, ascending.
    """
    start, due = 0.0, []
    for rate, seconds in rates:
        due.append(start + arrival_times(rate, seconds))
        start += seconds
    return np.concatenate(due)


@contextlib.contextmanager
def _memory_of(process: int) -> Iterator[list[tuple[float, float]]]:
    """Sample (time, resident MB) of a process from a thread while the block runs."""
    samples: list[tuple[float, float]] = []
    over = threading.Event()
    watched = psutil.Process(process)

    def watch() -> None:
        while not over.wait(_SAMPLE_SECONDS):
            with contextlib.suppress(psutil.NoSuchProcess):
                samples.append((time.perf_counter(), watched.memory_info().rss / 1e6))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def draw(run: Overload, title: str, path: Path) -> None:
    """Arrivals and answers a second, response times, and memory, over time."""
    result = run.result
    edges = np.arange(0, result.window[1] + WINDOW_SECONDS, WINDOW_SECONDS)
    figure = Figure(figsize=(9, 7), dpi=110, layout="constrained")
    rates, times, memory = figure.subplots(3, 1, sharex=True)
    due, _ = np.histogram(result.due, edges)
    rates.step(edges[:-1], due / WINDOW_SECONDS, where="post", label="due", color="black", linewidth=1)
    for status, colour in ((200, "tab:green"), (429, "tab:red")):
        chosen = result.status == status
        counts, _ = np.histogram(result.done[chosen], edges)
        rates.step(edges[:-1], counts / WINDOW_SECONDS, where="post", label=f"answered {status}", color=colour)
        response = 1000 * (result.done - result.due)[chosen]
        windows = np.digitize(result.due[chosen], edges) - 1
        for percentile, style in ((50, "-"), (99, ":")):
            values = [
                np.percentile(response[windows == n], percentile) if (windows == n).any() else np.nan
                for n in range(len(edges) - 1)
            ]
            times.plot(edges[:-1], values, style, label=f"{status}, p{percentile}", color=colour)
    rates.axhline(run.capacity, color="grey", linewidth=0.8, linestyle="--", label="capacity")
    rates.set_ylabel("requests/s")
    rates.set_title(title)
    times.set_yscale("log")
    times.set_ylabel("ms from when it was due")
    memory.plot(run.memory_times, run.memory)
    memory.set_ylim(0)
    memory.set_ylabel("worker, resident MB")
    memory.set_xlabel("s")
    for axes in (rates, times):
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (rates, times, memory):
        axes.axvspan(run.start, run.end, color="grey", alpha=0.1)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def write(run: Overload, route: str, folder: Path) -> None:
    """Figures, table and chart, side by side."""
    name = f"overload-{route}"
    title = f"{route}: {run.summary()['offered']:.0f}/s offered, capacity {run.capacity:.0f}/s"
    draw(run, title, folder / f"{name}.png")
    (folder / f"{name}.json").write_text(json.dumps(run.summary(), indent=2) + "\n", "utf-8")
    text = (
        f"# Overload: {title}\n\n![Rates, response times and memory over time]({name}.png)\n\n{bar_lines(run.bars())}"
    )
    (folder / f"{name}.md").write_text(text, "utf-8")


def main(arguments: Sequence[str]) -> int:
    """0 when every bar is met, 1 when not or when the generator could not keep up, 2 for bad use."""
    ours = next(peer for peer in PEERS if peer.name == "sextant")
    parser = argparse.ArgumentParser(prog="python -m loadtests.overload", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("route", choices=list(ours.requests), metavar="ROUTE", help=", ".join(ours.requests))
    parser.add_argument("--factor", type=float, default=3.0, help="times the capacity (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of overload (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=RESULTS, help="(%(default)s)")
    options = parser.parse_args(arguments)
    if not (0 < options.factor < 100 and 1 <= options.seconds < 86_400):
        parser.error(f"expected a factor above 0 and at least 1 s, received {options.factor:g}, {options.seconds:g} s")
    server_cores, own_cores = cores()
    port, request = free_port(), ours.requests[options.route]
    address = Address("127.0.0.1", port)
    message = encode(address, request.method, request.path, request.body, request.media_type)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="overload-") as home,
            Server(ours.command(sys.executable, port), port, Path(home), {}, server_cores) as server,
        ):
            server.wait_until_ready(request)
            with pinned(own_cores):
                run = measure(
                    address,
                    message,
                    max(server.processes(), key=lambda process: process.memory_info().rss).pid,
                    factor=options.factor,
                    seconds=options.seconds,
                    capacity_seconds=5.0,
                    deadline=Settings().deadline_seconds,
                )
    except ServerError as error:
        print(f"overload: {error}", file=sys.stderr)
        return 1
    write(run, options.route, options.output)
    print(json.dumps(run.summary(), indent=2))
    print(bar_lines(run.bars()))
    if not run.result.valid:
        print(f"INVALID: the generator could not keep up: {run.result.line()}", file=sys.stderr)
    return 0 if run.result.valid and all(bar.met is not False for bar in run.bars()) else 1


if __name__ == "__main__":
    sys.exit(interruptible(main, sys.argv[1:]))
