"""``make capacity``: the highest rate that the service answers within its SLO, by search, three times.

A rate holds when every request of a probe is answered as it should be and the p99, from due, stays within the SLO's.
The search doubles the rate until it does not hold any more, then halves the distance (of the logarithms) to 5 %.

On a machine that is shared with others a probe may fail for what they do. Four things keep that out of the figure: a
probe's p99 is the median of those of its windows, so that one stall of the machine does not decide, while a queue that
grows, as it does beyond the capacity, spoils every window; a rate is given up only after it has failed twice; a failure
does not count while others take processor time; and of three searches the median counts. The generator's own lateness
is judged by windows too. Where it is the generator that fails, again and again, the capacity is at least what held
before, and the table says so.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from loadtests import options
from loadtests.load import Load, LoadError, generate
from loadtests.mix import GROUPS
from loadtests.others import Others
from loadtests.processes import ROOT
from loadtests.runfile import Run
from loadtests.server import Service, service
from loadtests.slo import ALL, SERVED, Slo, SloError, load
from loadtests.tables import put_between_markers, table

NAME = "capacity"
START, END = "<!-- capacity: written by make capacity -->", "<!-- capacity: end -->"
RESULTS = ROOT / "loadtests" / "results" / "capacity.json"
EVERY: Final = ("digit", "image", "sentiment", "gan", "vae", ALL)
"""What the table in the README tells of."""
START_RATE: Final = 100.0
PRECISION: Final = 1.05
"""Lowest rate that did not hold over the highest that did, at the end of a search."""
ATTEMPTS: Final = 2
"""Probes that the service may fail before a rate counts as too high."""
EXCUSED_ATTEMPTS: Final = 3
"""Probes that may fail for another reason: the generator, or others on the machine."""
MOST_BY_OTHERS: Final = 0.25
"""Cores that others may take during a probe whose failure counts."""
LATE_SECONDS: Final = 0.005
"""Longest p99 of sent − due for the figures to be the service's."""
NEXT_GROWTH: Final = 1.25
"""Steps of the searches after the first, which begin where that ended."""
LEAST_RATE: Final = 1.0
PROBE_SECONDS: Final = 6.0
SETTLE_SECONDS: Final = 1.0
"""At the beginning of a probe, for connections to open and caches to fill; errors count there too."""
PAUSE_SECONDS: Final = 1.0
"""Before a probe, for the service to be rid of what the one before has left; Locust's start takes another two."""
WINDOW_REQUESTS: Final = 200
"""That a window of a probe has at least, so that its p99 is no mere maximum."""


class CapacityError(LoadError):
    """There is nothing to search for."""


@dataclass(frozen=True)
class Probe:
    """A rate that was tried.

    Args:
        rate: requests a second.
        p99_ms: by route, from due; nan without an answer.
        broken: why it does not hold; empty when it does.
        by_generator: whether that is because the generator did not keep up.
        others: cores that other processes and machines took meanwhile; 0 where that is not known.
    """

    rate: float
    p99_ms: Mapping[str, float]
    broken: str = ""
    by_generator: bool = False
    others: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the service answers this rate as it should."""
        return not self.broken

    @property
    def excused(self) -> bool:
        """Whether a failure says little of the service."""
        return not self.holds and (self.by_generator or self.others > MOST_BY_OTHERS)


@dataclass(frozen=True)
class Capacity:
    """What one search found.

    Args:
        rate: the highest that held.
        p99_ms: by route, at that rate.
        at_least: whether the generator was at its end there, and the service may not have been.
    """

    rate: float
    p99_ms: Mapping[str, float]
    at_least: bool = False


@dataclass(frozen=True)
class Answer:
    """The capacity for one kind of traffic.

    Args:
        route: of `loadtests.mix.GROUPS`.
        limits: longest p99 in ms, by route.
        searches: in order.
    """

    route: str
    limits: Mapping[str, float]
    searches: Sequence[Capacity]

    @property
    def rate(self) -> float:
        """Median of the searches, requests a second."""
        return statistics.median(found.rate for found in self.searches)

    @property
    def spread(self) -> float:
        """From the lowest to the highest of the searches, as a share of the median."""
        rates = [found.rate for found in self.searches]
        return (max(rates) - min(rates)) / self.rate

    @property
    def at_least(self) -> bool:
        """Whether the generator was at its end in any of the searches that made the median."""
        return any(found.at_least for found in self.searches if found.rate <= self.rate)

    @property
    def figure(self) -> str:
        """The rate, in words."""
        return f"{'≥ ' if self.at_least else ''}{self.rate:.0f}"

    def __str__(self) -> str:
        rates = ", ".join(f"{found.rate:.0f}" for found in self.searches)
        why = "; the generator was at its end, give it more PROCESSES" if self.at_least else ""
        return f"{self.route}: {self.figure} requests/s (median of {rates}; spread {self.spread:.0%}){why}"


def limits(slo: Slo, route: str) -> dict[str, float]:
    """The longest p99 in ms, by route, that the SLO allows for what is asked.

    Raises:
        SloError: it says nothing of it.
    """
    found = {
        name: objective.p99_ms
        for name, objective in slo.objectives.items()
        if name in {ALL, *GROUPS[route]} and objective.p99_ms is not None
    }
    if not found:
        raise SloError(f"the SLO has no p99_ms for {', '.join(GROUPS[route])}; a capacity is the rate that keeps it")
    return found


def judge(run: Run, rate: float, allowed: Mapping[str, float]) -> Probe:
    """Whether a rate holds; see the module for how noise is kept out."""
    p99_ms = {route: 1000 * p99(run, None if route == ALL else route) for route in allowed}
    late, total, asked = p99(run, None, "late"), run.recording.total(), rate * run.seconds
    if late > LATE_SECONDS:
        why = f"the generator did not keep up: p99 of sent − due {1000 * late:.3g} ms"
        return Probe(rate, p99_ms, why, by_generator=True)
    if total.count < SERVED * asked:
        why = f"the generator did not keep up: {total.count} of {asked:.0f} requests"
        return Probe(rate, p99_ms, why, by_generator=True)
    if total.errors:
        why = ", ".join(f"{count} × {reason}" for reason, count in total.errors.most_common(3))
        return Probe(rate, p99_ms, why, by_generator=all(reason.startswith("not sent") for reason in total.errors))
    for route, limit in allowed.items():
        if not p99_ms[route] <= limit:
            return Probe(rate, p99_ms, f"p99 of {route} {p99_ms[route]:.3g} ms, at most {limit:g} ms")
    return Probe(rate, p99_ms)


def p99(run: Run, route: str | None, times: Literal["response", "late"] = "response") -> float:
    """The median of the windows' p99s, in seconds; nan when a window has no answer.

    Windows are of whole seconds, with `WINDOW_REQUESTS` each if there are as many.
    """
    first, last = math.ceil(SETTLE_SECONDS), round(run.seconds)
    count = run.recording.total(route, first, last).count
    windows = min(max(count // WINDOW_REQUESTS, 1), last - first)
    parts = np.array_split(np.arange(first, last), windows)
    cells = [run.recording.total(route, int(part[0]), int(part[-1]) + 1) for part in parts]
    return float(np.median([(cell.response if times == "response" else cell.late).percentile(99) for cell in cells]))


def search(try_rate: Callable[[float], Probe], start: float = START_RATE, growth: float = 2.0) -> Capacity:
    """Find the highest rate that holds.

    Args:
        try_rate: measures one.
        start: the rate to begin with.
        growth: from a rate that holds to the next one, until one does not.

    Raises:
        CapacityError: none holds, down to `LEAST_RATE`.
    """
    low: Probe | None = None
    high: Probe | None = None
    rate = start
    while low is None or high is None or high.rate > PRECISION * low.rate:
        probe = _patiently(try_rate, rate)
        if probe.holds:
            low = probe
        else:
            high = probe
        if high is None:
            rate = _rounded(probe.rate * growth)
        elif low is None:
            rate = _rounded(probe.rate / growth)
            if rate < LEAST_RATE:
                raise CapacityError(f"not even {probe.rate:g} requests/s hold: {probe.broken}")
        else:
            rate = _rounded(math.sqrt(low.rate * high.rate))
            if not low.rate < rate < high.rate:
                break
    assert low is not None  # noqa: S101 - the loop goes on until there is one
    assert high is not None  # noqa: S101 - likewise
    return Capacity(low.rate, low.p99_ms, high.by_generator)


def _patiently(try_rate: Callable[[float], Probe], rate: float) -> Probe:
    """The first probe that holds, or the last one that the rate gets."""
    failed = excused = 0
    while True:
        probe = try_rate(rate)
        failed += not probe.holds and not probe.excused
        excused += probe.excused
        if probe.holds or failed == ATTEMPTS or excused == EXCUSED_ATTEMPTS:
            return probe


def _rounded(rate: float) -> float:
    """To three digits: nobody wants to read more of them."""
    return float(f"{rate:.3g}")


class Prober:
    """Tries rates on a service, and tells of each in a line.

    Args:
        on: the service.
        like: the load, whatever its rate.
        allowed: longest p99 in ms, by route.
        log: file for what Locust says.
    """

    def __init__(self, on: Service, like: Mapping[str, Any], allowed: Mapping[str, float], log: Path) -> None:
        self._on, self._like, self._allowed, self._log = on, like, allowed, log
        self.about: Mapping[str, Any] = {}

    def __call__(self, rate: float) -> Probe:
        """Try one.

        Raises:
            loadtests.load.GeneratorError: Locust recorded nothing.
        """
        print(f"  {rate:>7g}/s  ", end="", flush=True)
        time.sleep(PAUSE_SECONDS)
        put = Load(**self._like, shape="steady", rate=rate)
        with Others(self._on.processes) as others:
            run = Run.from_json(generate(put, self._on.url, self._log, self._on.generator) | {"server": []})
        self.about = run.about
        probe = replace(judge(run, rate, self._allowed), others=others.cores)
        held = f"holds: p99 {closest(probe.p99_ms, self._allowed)}"
        disturbed = f"; others took {probe.others:.0%} of a core" if probe.others > MOST_BY_OTHERS else ""
        print((held if probe.holds else f"does not hold: {probe.broken}") + disturbed, flush=True)
        return probe


def measure(prober: Prober, route: str, allowed: Mapping[str, float], start: float, times: int) -> Answer:
    """Search several times; from the second time on, from where the ones before have ended."""
    searches: list[Capacity] = []
    for number in range(1, times + 1):
        promise = ", ".join(f"{name} {limit:g} ms" for name, limit in allowed.items())
        print(f"{route}, search {number} of {times}: no errors, and a p99 of at most {promise}", flush=True)
        if not searches:
            searches.append(search(prober, start))
        else:
            searches.append(search(prober, _rounded(statistics.median(one.rate for one in searches)), NEXT_GROWTH))
    return Answer(route, allowed, searches)


def lines(answers: Iterable[Answer]) -> str:
    """A Markdown table."""
    rows = []
    for answer in answers:
        found = min(answer.searches, key=lambda one: abs(one.rate - answer.rate))
        name = "all, mixed" if answer.route == ALL else answer.route
        rows.append([name, answer.figure, f"{answer.spread:.0%}", closest(found.p99_ms, answer.limits)])
    return table(["asked", "requests/s", "spread", "p99 at that rate"], rows)


def closest(p99_ms: Mapping[str, float], allowed: Mapping[str, float]) -> str:
    """The p99 that is closest to its limit, or furthest beyond, in words."""
    worst = max(allowed, key=lambda route: p99_ms[route] / allowed[route])
    return f"{p99_ms[worst]:.3g} of {allowed[worst]:g} ms ({worst})"


def main(arguments: Sequence[str]) -> int:
    """0 when every capacity was found; 2 for bad use, 3 when Locust or the service fail."""
    parser = options.parser(NAME, "loadtests.capacity", __doc__)
    add = parser.add_argument
    add("--route", default=",".join(EVERY), help="what is asked, one after another: digit,image,all … (%(default)s)")
    add("--rate", type=float, default=START_RATE, help="to begin with (%(default)g)")
    add("--times", type=int, default=3, metavar="N", help="that is searched (%(default)s)")
    add("--seconds", type=float, default=PROBE_SECONDS, help="of a probe, after one to settle (%(default)g)")
    add("--readme", action="store_true", help="keep the figures, and put the table into README.md")
    told = parser.parse_args(arguments)
    if told.times < 1 or told.seconds < 1:
        parser.error(f"expected at least one search and probes of 1 s, received {told.times} and {told.seconds:g} s")
    like = {"seconds": SETTLE_SECONDS + told.seconds, "processes": told.processes, "seed": told.seed}
    wanted = [Load(route=route, rate=told.rate, **like).route for route in told.route.split(",")]
    slo = load(told.slo)
    allowed = {route: limits(slo, route) for route in wanted}
    answers: list[Answer] = []
    with (
        service(told.host, told.port, start=True) as on,
        tempfile.TemporaryDirectory(prefix="capacity-") as folder,
    ):
        print(f"capacity of {on.note}", flush=True)
        for route in wanted:
            prober = Prober(on, like | {"route": route}, allowed[route], Path(folder) / "locust.log")
            answers.append(measure(prober, route, allowed[route], told.rate, told.times))
            print(answers[-1], flush=True)
    print(f"\n{lines(answers)}", end="")
    if told.readme:
        keep(answers, prober.about)
    return options.MET


def keep(answers: Sequence[Answer], about: Mapping[str, Any]) -> None:
    """Put the table into the README, and the figures beside those of the other measurements."""
    machine = about["machine"]
    told = {
        "about": {key: about[key] for key in ("machine", "versions", "started")},
        "capacity": [asdict(answer) for answer in answers],
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    note = (
        f"{machine['processor']}, {machine['cores']} cores, one for the service and one for the load; "
        f"{machine['system']}; {about['started'][:10]}. No request failed, and the p99 of each route kept to "
        "[slo.toml](loadtests/slo.toml); median of three searches.\n"
    )
    put_between_markers(ROOT / "README.md", f"{lines(answers)}\n{note}", START, END)


if __name__ == "__main__":
    sys.exit(options.run(NAME, main, sys.argv[1:]))
