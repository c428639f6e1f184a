"""What clients noticed, second by second, with what was done to the replicas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from deploy.replicas.findings import ROLLING_P99, SETTLE_SECONDS, Finding

_GOOD, _FAILED, _P99, _LONGEST, _EVENT = "#3a78a8", "#b3261e", "#12395b", "#c8c8c8", "#7a5c00"


def draw(findings: Sequence[Finding], path: Path) -> None:
    """A row a scenario: requests a second, good and failed, and p99, by second; events are numbered lines."""
    figure = Figure(figsize=(13, 3.3 * len(findings)), dpi=110, layout="constrained")
    rows = np.atleast_2d(figure.subplots(len(findings), 2, squeeze=False))
    for (rates, times), found in zip(rows, findings, strict=True):
        _draw_rates(rates, found)
        _draw_times(times, found)
        for axes in (rates, times):
            axes.axvspan(0, found.begin, color="0.93", zorder=0)
            axes.set_xlim(0, found.run.seconds)
            axes.set_xlabel("seconds; grey: before anything is done")
            axes.spines[["top", "right"]].set_visible(False)
            for event in found.events:
                axes.axvline(event.second, color=_EVENT, linewidth=0.8, linestyle=":")
        _name(times, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_rates(axes: Axes, found: Finding) -> None:
    cells = [found.run.recording.total(None, second, second + 1) for second in _seconds(found)]
    edges = [*_seconds(found), len(cells)]
    good, failed = (np.array(counts, float) for counts in ([c.ok for c in cells], [c.failed for c in cells]))
    axes.stairs(good, edges, color=_GOOD, linewidth=1.4, baseline=None, label="answered well")
    axes.stairs(good + failed, edges, baseline=good, color=_FAILED, fill=True, label="failed")
    axes.set_ylim(0, 1.15 * max(1.0, *(good + failed)))
    axes.set_ylabel("requests/s, by when they were due")
    axes.set_title(f"{found.title}: {found.since.failed} of {found.since.count} failed", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _draw_times(axes: Axes, found: Finding) -> None:
    cells = [found.run.recording.total(None, second, second + 1) for second in _seconds(found)]
    middles = np.arange(len(cells)) + 0.5
    for values, colour, label in (
        ([1000 * cell.response.max for cell in cells], _LONGEST, "longest"),
        ([1000 * cell.response.percentile(99) for cell in cells], _P99, "p99"),
    ):
        axes.plot(middles, values, color=colour, linewidth=1.3, label=label)
    quiet, disturbed = (1000 * cell.response.percentile(99) for cell in (found.quiet, found.disturbed))
    axes.plot([SETTLE_SECONDS, found.begin], [quiet, quiet], color=_GOOD, linewidth=1.6)
    axes.plot([found.begin, found.end], [disturbed, disturbed], color=_GOOD, linewidth=1.6, label="p99 of all")
    axes.axhline(ROLLING_P99 * quiet, color=_FAILED, linewidth=0.9, linestyle="--", label=f"{ROLLING_P99:g} × before")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("ms from when it was due")
    axes.set_title(f"p99 {quiet:.3g} ms before, {disturbed:.3g} ms meanwhile", loc="left", fontsize=10)
    axes.grid(axis="y", alpha=0.25)


def _name(axes: Axes, found: Finding) -> None:
    """Legend beside the picture, the events under it."""
    for event in found.events:
        axes.plot([], [], ":", color=_EVENT, linewidth=0.8, label=f"{event.second:.0f} s  {event.what}")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _seconds(found: Finding) -> range:
    return range(math.ceil(found.run.seconds))
