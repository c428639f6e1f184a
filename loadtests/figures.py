"""Pictures of a load test: over time, by route, the distribution of its times, and what rate they hold up to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from loadtests.record import Cell, Histogram, upper_edges
from loadtests.runfile import Run
from loadtests.slo import ALL, ROUTES, Objective, Slo, in_order, knee

Floats = NDArray[np.float64]
BINS: Final = 240
"""Most points in time that a line has; longer runs are drawn in longer steps than a second."""
_PERCENTILES: Final = ((50.0, "p50", "#7fb2d6"), (95.0, "p95", "#3a78a8"), (99.0, "p99", "#12395b"))
_LONGEST: Final = "#c8c8c8"
_MARK: Final = "#b3261e"
_TICKS: Final = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)


@dataclass(frozen=True)
class Picture:
    """A figure and what to say of it.

    Args:
        name: of its file, without suffix.
        text: for those who do not see it, and under it for those who do.
    """

    name: str
    title: str
    text: str
    figure: Figure


def pictures(run: Run, slo: Slo) -> Iterator[Picture]:
    """Those that the run has something to show in."""
    if not run.recording.routes():
        return
    if len(run.stages) > 1 and run.about.get("shape") == "steps":
        yield throughput(run, slo)
    yield timeline(run, slo)
    if len(run.recording.routes()) > 1:
        yield routes(run, slo)
    yield distribution(run)


def timeline(run: Run, slo: Slo) -> Picture:
    """Rates, response times and, if the server was sampled, its batches, queues and memory, on one time axis."""
    panels: list[Callable[[Axes], None]] = [
        lambda axes: _rates(axes, run),
        lambda axes: _over_time(axes, run, None, _objective(slo, run)),
    ]
    batches, queues = by_model(run, "sextant_batch_rows"), by_model(run, "sextant_queue_seconds")
    if batches:
        panels.append(lambda axes: _lines(axes, batches, "rows a batch"))
    if queues:
        milliseconds = {name: (times, 1000 * values) for name, (times, values) in queues.items()}
        panels.append(lambda axes: _queues(axes, milliseconds))
    memory = resident(run)
    if memory:
        panels.append(lambda axes: _lines(axes, memory, "resident, MB"))
    figure = _figure(9, 0.5 + 1.75 * len(panels))
    every = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True))
    for axes, draw in zip(every, panels, strict=True):
        draw(axes)
        _legend(axes)
    every[-1].set_xlim(0, run.seconds)
    every[-1].set_xlabel("seconds since the start")
    figure.align_ylabels()
    server = (
        " Below, from the server’s own /metrics: mean rows a batch and mean time in the queue by model; and the"
        " resident memory of its processes."
        if len(panels) > 2
        else ""
    )
    text = (
        "Asked and served requests a second, and response times counted from when a request was due. Where fewer than a"
        f" hundred were answered in a step, p99 is the longest.{server}"
    )
    return Picture("timeline", "Over time", text, figure)


def routes(run: Run, slo: Slo) -> Picture:
    """Percentiles over time, a panel a route."""
    names = in_order(run.recording.routes())
    rows = -(-len(names) // 2)
    figure = _figure(9, 0.6 + 1.9 * rows)
    every = np.atleast_1d(figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)).ravel()
    for axes, name in zip(every, names, strict=False):
        _over_time(axes, run, name, slo.objectives.get(name, Objective()))
        axes.set_title(name, loc="left", fontsize=9)
    for axes in every[len(names) :]:
        axes.axis("off")
    for axes in every[len(names) - 2 : len(names)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("seconds since the start", fontsize=10)
    every[0].set_xlim(0, run.seconds)
    handles, labels = every[0].get_legend_handles_labels()
    for axes in every[1 : len(names)]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles, labels = [*handles, handle], [*labels, label]
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=8)
    return Picture(
        "routes",
        "By route",
        "Response times by route, all on the same scales; dotted the p99 of service times, counted from when a request "
        "was sent; dashed what is promised for p99.",
        figure,
    )


def distribution(run: Run) -> Picture:
    """Times by percentile, the axis stretched towards the rare ones as HdrHistogram's plots do."""
    figure = _figure(9, 4.4)
    axes = figure.subplots()
    most = 1000
    for name in in_order(run.recording.routes()):
        cell = run.recording.total(name)
        for histogram, style, width in ((cell.response, "-", 1.6), (cell.service, ":", 1.1)):
            rarity, seconds = by_rarity(histogram)
            label = name if style == "-" else None
            axes.plot(
                rarity, 1000 * seconds, style, drawstyle="steps-post", color=colour(name), linewidth=width, label=label
            )
            most = max(most, histogram.count)
    axes.plot([], [], "-", color="0.4", label="response")
    axes.plot([], [], ":", color="0.4", label="service")
    axes.set_xscale("log")
    axes.set_xlim(1, most)
    ticks = [tick for tick in _TICKS if 1 / (1 - tick / 100) <= most * 1.001]
    axes.xaxis.set_major_locator(FixedLocator([1 / (1 - tick / 100) for tick in ticks]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - 1 / value):.6g} %"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("share of requests that took no longer")
    _milliseconds(axes)
    axes.grid(axis="x", alpha=0.25)
    _legend(axes)
    return Picture(
        "distribution",
        "Distribution",
        "How long all but the slowest took, to the longest of each route. Solid: response, from when a request was "
        "due; dotted: service, from when it was sent. What lies between them a closed loop would not have shown.",
        figure,
    )


def throughput(run: Run, slo: Slo) -> Picture:
    """What was served of each stage's load, and the latency at which; the knee marked."""
    figure = _figure(9, 4.0)
    served_axes, axes = figure.subplots(1, 2, width_ratios=[1, 1.6])
    stages = [stage for stage in run.stages if run.recording.total(None, stage.start, stage.end).count]
    cells = [run.recording.total(None, stage.start, stage.end) for stage in stages]
    served = [cell.ok / (stage.end - stage.start) for stage, cell in zip(stages, cells, strict=True)]
    asked = [stage.rate if stage.rate is not None else float(stage.users or 0) for stage in stages]
    most = max(*served, 1.0)
    served_axes.plot(asked, served, "o-", color="#12395b", markersize=4)
    if run.open_loop:
        served_axes.axline((0, 0), slope=1, color="0.7", linewidth=0.9, linestyle="--")
    served_axes.set_xlabel("asked for, requests/s" if run.open_loop else "users")
    served_axes.set_ylabel("answered well, requests/s")
    served_axes.set_xlim(0, max(asked) * 1.05)
    served_axes.set_ylim(0, most * 1.15)
    served_axes.spines[["top", "right"]].set_visible(False)
    limits = _objective(slo, run).limits
    for q, name, shade in _PERCENTILES:
        times = [1000 * cell.response.percentile(q) for cell in cells]
        axes.plot(served, times, "o-", color=shade, markersize=4, label=name)
        if f"{name}_ms" in limits:
            axes.axhline(limits[f"{name}_ms"], color=shade, linewidth=0.9, linestyle="--")
    axes.plot([], [], "--", color="0.5", linewidth=0.9, label="promised")
    axes.set_xlim(0, most * 1.1)
    axes.set_xlabel("answered well, requests/s")
    _milliseconds(axes)
    found = knee(slo, run)
    text = "No stage was served within the SLO, so there is no knee."
    if found in stages:
        place = stages.index(found)
        rate, p99 = served[place], 1000 * cells[place].response.percentile(99)
        for each, x, y in ((served_axes, asked[place], rate), (axes, rate, p99)):
            each.plot([x], [y], "o", markersize=13, markerfacecolor="none", markeredgecolor=_MARK, markeredgewidth=1.8)
        axes.axvline(rate, color=_MARK, linewidth=0.9, linestyle=":")
        right = rate < most / 2
        axes.annotate(
            f"knee: {rate:.4g}/s, p99 {p99:.3g} ms",
            (rate, 0.96),
            xycoords=("data", "axes fraction"),
            xytext=(6 if right else -6, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="top",
            color=_MARK,
            fontsize=9,
        )
        text = (
            f"The knee lies at {rate:.4g} requests/s: the last stage of which at least 95 % was answered well and "
            "every promise of the SLO but the rate was kept (as MLPerf Inference’s server scenario defines throughput)."
        )
    _legend(axes)
    return Picture("throughput", "Latency and throughput", f"A point for each stage, in order. {text}", figure)


def by_rarity(histogram: Histogram) -> tuple[Floats, Floats]:
    """The steps of a distribution.

    Returns:
        (n,) one over the share of times that are at least as long, from 1 to all of them, and (n,) seconds.
    """
    counts = histogram.counts
    used = np.flatnonzero(counts)
    if not used.size:
        return np.empty(0), np.empty(0)
    shorter = np.cumsum(counts[used]) - counts[used]
    rarity = histogram.count / (histogram.count - shorter)
    seconds = np.minimum(upper_edges()[used], histogram.max)
    return np.append(rarity, histogram.count), np.append(seconds, histogram.max)


def by_model(run: Run, metric: str) -> dict[str, tuple[Floats, Floats]]:
    """The mean of a histogram of ``/metrics`` between two samples, by model.

    Returns:
        (n,) seconds, the middle between samples, and (n,) the mean of what was observed in between; nan where nothing
        was, or the counters began anew with a new process.
    """
    lines: dict[str, tuple[Floats, Floats]] = {}
    names = (f"{metric}_count", f"{metric}_sum")
    told = [sample for sample in run.server if sample.metrics]  # an overloaded server may not have answered
    for name in sorted({name for sample in told for name in sample.metrics.get(names[0], {})}):
        times, means = [], []
        for before, after in pairwise(told):
            count, total = (
                after.metrics.get(part, {}).get(name, 0.0) - before.metrics.get(part, {}).get(name, 0.0)
                for part in names
            )
            times.append((before.t + after.t) / 2)
            means.append(total / count if count > 0 and total >= 0 else math.nan)
        if np.isfinite(means).any():
            lines[name] = np.array(times), np.array(means)
    return lines


def resident(run: Run) -> dict[str, tuple[Floats, Floats]]:
    """Resident MB over time by process, the largest first; a process is named once it holds memory."""
    found = {}
    for process in {process for sample in run.server for process in sample.resident_mb}:
        seen = [(sample.t, sample.resident_mb[process]) for sample in run.server if process in sample.resident_mb]
        times, sizes = np.array(seen, float).T
        found[f"process {process}"] = times, sizes
    return dict(sorted(found.items(), key=lambda item: -float(item[1][1].max())))


def colour(route: str) -> str:
    """The same for a route in every picture."""
    place = ROUTES.index(route) if route in ROUTES else len(ROUTES)
    return f"C{place}"


def _rates(axes: Axes, run: Run) -> None:
    starts, cells = _steps(run, None)
    step = _step(run)
    lengths = np.minimum(starts + step, run.seconds) - starts
    for stage in run.stages:
        if stage.rate is not None:
            axes.plot([stage.start, stage.end], [stage.rate, stage.rate], color="black", linewidth=1, linestyle="--")
    if any(stage.rate is not None for stage in run.stages):
        axes.plot([], [], color="black", linewidth=1, linestyle="--", label="asked for")
    served = np.array([cell.ok for cell in cells]) / lengths
    failed = np.array([cell.failed for cell in cells]) / lengths
    axes.stairs(
        served,
        [*starts, starts[-1] + lengths[-1]],
        color="#3a78a8",
        label="answered well",
        baseline=None,
        linewidth=1.4,
    )
    if failed.any():
        axes.stairs(failed, [*starts, starts[-1] + lengths[-1]], color=_MARK, fill=True, alpha=0.8, label="failed")
    axes.set_ylim(0)
    axes.set_ylabel("requests/s")
    axes.spines[["top", "right"]].set_visible(False)


def _over_time(axes: Axes, run: Run, route: str | None, objective: Objective) -> None:
    starts, cells = _steps(run, route)
    middles = starts + _step(run) / 2
    axes.plot(middles, [1000 * cell.response.max for cell in cells], color=_LONGEST, linewidth=1, label="longest")
    for q, name, shade in _PERCENTILES:
        axes.plot(
            middles, [1000 * cell.response.percentile(q) for cell in cells], color=shade, linewidth=1.4, label=name
        )
    service = [1000 * cell.service.percentile(99) for cell in cells]
    axes.plot(middles, service, ":", color="#12395b", linewidth=1.1, label="p99, service")
    if objective.p99_ms is not None:
        axes.axhline(objective.p99_ms, color=_MARK, linewidth=0.9, linestyle="--", label="p99 promised")
    _milliseconds(axes)


def _lines(axes: Axes, lines: dict[str, tuple[Floats, Floats]], label: str) -> None:
    for name, (times, values) in lines.items():
        axes.plot(times, values, label=name, linewidth=1.3)
    axes.set_ylim(0)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _queues(axes: Axes, lines: dict[str, tuple[Floats, Floats]]) -> None:
    for name, (times, values) in lines.items():
        axes.plot(times, values, label=name, linewidth=1.3)
    _milliseconds(axes)
    axes.set_ylabel("queue, ms")


def _milliseconds(axes: Axes) -> None:
    if any(np.any(np.asarray(line.get_ydata(), float) > 0) for line in axes.get_lines()):  # a log scale needs something
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("ms")
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _steps(run: Run, route: str | None) -> tuple[Floats, list[Cell]]:
    """(n,) seconds at which steps begin, and what was due in each."""
    step = _step(run)
    starts = np.arange(0, math.ceil(run.seconds), step, dtype=float)
    return starts, [run.recording.total(route, start, start + step) for start in starts.tolist()]


def _step(run: Run) -> int:
    return max(1, math.ceil(run.seconds / BINS))


def _objective(slo: Slo, run: Run) -> Objective:
    """What is promised for all that the run asked for: the route's own when there is but one."""
    names = run.recording.routes()
    return slo.objectives.get(names[0] if len(names) == 1 else ALL, Objective())


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=110, layout="constrained")
