"""``python -m loadtests.compare A B``: two load tests side by side, and which differences exceed the noise.

With repeated runs (``A1 B1 A2 B2 …`` in the order in which they were measured, or ``--a A1 A2 … --b B1 B2 …``) the
noise is the spread between repeats, and the interval Student's. With one run a side it is the spread within the run:
its seconds are drawn again, in blocks and within each stage, a thousand times. That knows nothing of what differs
between two starts of a server, or between two hours of a shared machine: to be sure, repeat both, in turn.

Intervals hold the true value with 99 %. A ratio of less than 1 %, the width of a histogram's bucket, is never called a
difference; a percentile is judged only where each run has ten answers beyond it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure as Chart
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from loadtests.noise import LEVEL, RESOLUTION, Floats, Interval, between_repeats, between_resamples, resampled
from loadtests.record import LONGEST, Histogram, upper_edges
from loadtests.runfile import Run
from loadtests.slo import ALL

RESAMPLES = 1000
BEYOND = 10
"""Answers that must lie beyond a percentile for it to be judged."""
_CONDITIONS = ("shape", "loop", "arrivals", "rate", "users", "seconds", "weights", "processes", "machine")
_EDGES = np.minimum(upper_edges(), LONGEST)
_COLOURS = {"within noise": "0.6", "too few answers": "0.85", "better": "tab:blue", "worse": "tab:red"}

Verdict = Literal["within noise", "better", "worse", "too few answers"]


@dataclass(frozen=True)
class Tally:
    """What n versions of a route's run counted: the run as it was, or seconds of it drawn again.

    Args:
        response: (n, buckets) times in each bucket of a histogram.
        service: (n, buckets) likewise.
        ok: (n,) requests.
        failed: (n,) requests.
        seconds: length of the run.
    """

    response: Floats
    service: Floats
    ok: Floats
    failed: Floats
    seconds: float


@dataclass(frozen=True)
class Figure:
    """Something to compare.

    Args:
        measure: (n,) values of a tally.
        unit: ``%`` figures are compared by their difference, others by their ratio.
        beyond: share of the answers that lies beyond it.
        more_is: what it means when B has more.
    """

    name: str
    measure: Callable[[Tally], Floats]
    unit: Literal["ms", "/s", "%"]
    beyond: float = 1.0
    more_is: Literal["better", "worse"] = "worse"

    @property
    def ratio(self) -> bool:
        """Whether values are compared by their ratio."""
        return self.unit != "%"

    def comparable(self, tally: Tally) -> Floats:
        """(n,) what differences are taken of: the logarithm of what is compared by its ratio."""
        values = self.measure(tally)
        return np.log(values) if self.ratio else values

    def text(self, value: float) -> str:
        """In its unit."""
        if math.isnan(value):
            return "–"
        number = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        return f"{number}{self.unit}" if self.unit == "/s" else f"{number} {self.unit}"

    def change(self, value: float) -> str:
        """A difference of `comparable` values, in words."""
        return f"×{math.exp(value):.3g}" if self.ratio else f"{value:+.2g} pt"


def _rate(tally: Tally) -> Floats:
    return np.maximum(tally.ok, 0.5) / tally.seconds  # half a request where there is none: a ratio needs something


def _errors(tally: Tally) -> Floats:
    with np.errstate(invalid="ignore"):
        share: Floats = 100 * tally.failed / (tally.ok + tally.failed)
    return share


def _percentile(q: float, times: Literal["response", "service"]) -> Callable[[Tally], Floats]:
    def measure(tally: Tally) -> Floats:
        counts: Floats = getattr(tally, times)
        reached = np.cumsum(counts, axis=1)
        total = reached[:, -1]
        rank = np.maximum(1, np.ceil(math.nextafter(q, 0) * total / 100))
        return np.where(total > 0, 1000 * _EDGES[np.argmax(reached >= rank[:, None], axis=1)], np.nan)

    return measure


FIGURES = (
    Figure("good answers", _rate, "/s", more_is="better"),
    Figure("errors", _errors, "%"),
    *(Figure(f"p{q:g}", _percentile(q, "response"), "ms", 1 - q / 100) for q in (50, 95, 99, 99.9)),
    *(Figure(f"service p{q:g}", _percentile(q, "service"), "ms", 1 - q / 100) for q in (50, 99)),
)


@dataclass(frozen=True)
class Row:
    """One figure of one route.

    Args:
        a: the figure; of several runs the geometric mean, or the mean where differences are compared.
        b: likewise.
        change: B less A of `Figure.comparable` values.
    """

    route: str
    figure: Figure
    a: float
    b: float
    change: Interval
    verdict: Verdict

    def cells(self) -> list[str]:
        """For a table."""
        figure, change = self.figure, self.change
        told = [self.route, figure.name, figure.text(self.a), figure.text(self.b)]
        if self.verdict == "too few answers":
            return [*told, "", "", self.verdict]
        interval = f"{figure.change(change.low)} … {figure.change(change.high)}"
        return [*told, figure.change(change.estimate), interval, self.verdict]


def compare(a: Sequence[Run], b: Sequence[Run]) -> list[Row]:
    """Every figure of every route that both sides have, and of all routes together.

    Args:
        a: one run, or at least two repeats.
        b: as ``a``; as many are not needed.

    Raises:
        ValueError: one side has repeats and the other has none, or they have no route in common.
    """
    if not a or not b or (len(a) == 1) != (len(b) == 1):
        raise ValueError(f"expected one run a side, or at least two on both; received {len(a)} and {len(b)}")
    routes = sorted(set.intersection(*(set(run.recording.routes()) for run in (*a, *b))))
    if not routes:
        raise ValueError("the runs have no route in common")
    shown = [ALL, *routes] if any(len(run.recording.routes()) > 1 for run in (*a, *b)) else routes
    resamples = 0 if len(a) > 1 else RESAMPLES
    random = np.random.default_rng(0)  # the same two files give the same table
    rows = []
    for route in shown:
        sides = [[tally(run, route, resamples, random) for run in side] for side in (a, b)]
        rows += [_row(route, figure, *sides) for figure in FIGURES]
    return rows


def tally(run: Run, route: str, resamples: int, random: np.random.Generator) -> Tally:
    """Count a route of a run: first as it was, then ``resamples`` times with its seconds drawn again."""
    length = math.ceil(run.seconds)
    cells = [run.recording.total(None if route == ALL else route, second, second + 1) for second in range(length)]
    drawn = np.ones((1 + resamples, length))
    if resamples:
        stages = {math.ceil(edge) for stage in run.stages for edge in (stage.start, stage.end)}
        for start, end in pairwise(sorted({0, length, *(edge for edge in stages if 0 < edge < length)})):
            drawn[1:, start:end] = resampled(end - start, resamples, random)
    return Tally(
        response=_drawn(drawn, [cell.response for cell in cells]),
        service=_drawn(drawn, [cell.service for cell in cells]),
        ok=drawn @ np.array([cell.ok for cell in cells], float),
        failed=drawn @ np.array([cell.failed for cell in cells], float),
        seconds=run.seconds,
    )


def _drawn(drawn: Floats, histograms: list[Histogram]) -> Floats:
    """(n, buckets) ``drawn`` (n, seconds) times the counts of each second, multiplied where there are any."""
    counts = np.array([histogram.counts for histogram in histograms], float)
    used = counts.any(axis=0)
    total = np.zeros((len(drawn), counts.shape[1]))
    total[:, used] = drawn @ counts[:, used]
    return total


def _row(route: str, figure: Figure, a: list[Tally], b: list[Tally]) -> Row:
    measured = [[figure.comparable(one) for one in side] for side in (a, b)]
    values = [float(np.mean([one[0] for one in side])) for side in measured]
    if len(a) > 1:
        change = between_repeats(*([float(one[0]) for one in side] for side in measured))
    else:
        change = between_resamples(measured[0][0], measured[1][0])
    fewest = min(float(one.ok[0] + one.failed[0]) for one in (*a, *b))
    # Less than a bucket, or than one request of those that count errors, is not resolved.
    change = change.widened(RESOLUTION if figure.ratio else 100 / max(fewest, 1))
    answers = min(float(one.response[0].sum()) for one in (*a, *b))
    verdict: Verdict = "within noise"
    if answers * figure.beyond < BEYOND - 1e-6 and figure.unit == "ms":
        verdict = "too few answers"
    elif change.beyond_noise:
        less: Verdict = "worse" if figure.more_is == "better" else "better"
        verdict = figure.more_is if change.low > 0 else less
    shown_a, shown_b = (math.exp(value) if figure.ratio else value for value in values)
    return Row(route, figure, shown_a, shown_b, change, verdict)


def differing_conditions(a: Sequence[Run], b: Sequence[Run]) -> list[str]:
    """Why the two sides may not be comparable, one line each."""
    lines = []
    for name in _CONDITIONS:
        told = [list({repr(_condition(run, name)): None for run in side}) for side in (a, b)]
        if told[0] != told[1]:
            lines.append(f"{name} differs: {', '.join(told[0])} in A, {', '.join(told[1])} in B")
    for letter, side in (("A", a), ("B", b)):
        lines += [f"a run of {letter} is invalid: {run.invalid}" for run in side if not run.valid]
    return lines


def _condition(run: Run, name: str) -> object:
    """What a run tells of ``name``, less what is never the same twice."""
    told = run.about.get(name)
    return {key: value for key, value in told.items() if key != "load"} if isinstance(told, dict) else told


def table(rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal, an empty line before each route."""
    head = ["route", "figure", "A", "B", "B to A", f"{LEVEL:.0%} interval", ""]
    cells = [head, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = {2, 3, 4}
    lines = []
    for number, line in enumerate(cells):
        first = number == 0 or line[0] != cells[number - 1][0]
        shown = line if first else ["", *line[1:]]
        padded = (
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(shown, widths, strict=True))
        )
        lines += [""] * (first and number > 0) + ["  ".join(padded).rstrip()]
    return "\n".join(lines)


def conclusion(rows: Sequence[Row]) -> str:
    """One line: how many figures differ, and which one most."""
    judged = [row for row in rows if row.verdict != "too few answers"]
    different = [row for row in judged if row.verdict != "within noise"]
    if not different:
        return f"B to A: all {len(judged)} figures within noise"
    most = max(different, key=lambda row: (row.figure.ratio, abs(row.change.estimate)))
    counts = ", ".join(
        f"{sum(row.verdict == verdict for row in judged)} {verdict}" for verdict in ("worse", "better", "within noise")
    )
    named = f"{most.route} {most.figure.name} {most.figure.change(most.change.estimate)} ({most.verdict})"
    return f"B to A: {counts}; the largest: {named}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Ratios with their intervals, a line a figure, those beyond noise in colour; errors, which have none, left out."""
    shown = [row for row in rows if row.figure.ratio and row.verdict != "too few answers"]
    chart = Chart(figsize=(8, 1.4 + 0.22 * len(shown)), dpi=110, layout="constrained")
    axes = chart.subplots()
    for verdict, colour in _COLOURS.items():
        places = [place for place, row in enumerate(shown) if row.verdict == verdict]
        ratios, lows, highs = (
            np.exp([getattr(shown[place].change, name) for place in places]) for name in ("estimate", "low", "high")
        )
        # of means of several runs the interval is about the estimate; resamples may lie all to one side of it
        spans = np.maximum([ratios - lows, highs - ratios], 0)
        if places:
            axes.errorbar(ratios, places, xerr=spans, fmt="o", markersize=4, color=colour, linewidth=1.2, label=verdict)
    for place, (row, after) in enumerate(pairwise(shown), start=1):
        if row.route != after.route:
            axes.axhline(place - 0.5, color="0.9", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7, 8.5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(shown)), [f"{row.route}  {row.figure.name}" for row in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_title(conclusion(rows), fontsize=9)
    axes.set_xlabel(f"B to A, with {LEVEL:.0%} intervals")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    chart.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path)


def main(arguments: list[str]) -> int:
    """0 whatever the comparison says; 2 for bad use."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders or run.json: A B, or A1 B1 A2 B2 …")
    parser.add_argument("--a", nargs="+", type=Path, default=[], metavar="RUN", help="repeats of A")
    parser.add_argument("--b", nargs="+", type=Path, default=[], metavar="RUN", help="repeats of B")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the ratios, too")
    options = parser.parse_args(arguments)
    if bool(options.runs) == bool(options.a or options.b) or len(options.runs) % 2:
        parser.error("expected runs in pairs, A B or A1 B1 A2 B2 …, or else both --a and --b")
    try:
        a = [Run.load(path) for path in options.a or options.runs[::2]]
        b = [Run.load(path) for path in options.b or options.runs[1::2]]
        rows = compare(a, b)
    except ValueError as error:
        parser.error(str(error))
    print(table(rows), end="\n\n")
    for line in differing_conditions(a, b):
        print(f"note: {line}")
    noise = (
        f"the spread of {len(a)} and {len(b)} repeats (Student's t)"
        if len(a) > 1
        else "the spread within each run alone (block bootstrap over its seconds); repeat the runs, in turn, to be sure"
    )
    print(f"noise: {noise}")
    print(conclusion(rows))
    if options.png:
        draw(rows, options.png)
        print(f"drawn: {options.png}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
