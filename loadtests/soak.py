"""``make soak MINUTES=30``: mixed load at 60 % of the capacity, and whether anything drifts.

No request may fail, no process may come or go, the resident memory of each stays within 5 % of what it was after
3 minutes (in shorter runs: after a tenth), and the p99 of the last third is at most 20 % above the first one's.
Statuses and files are those of ``make loadtest``; the SLO is held against the run too.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from loadtests import capacity, options
from loadtests.bars import Bar
from loadtests.figures import by_model
from loadtests.load import Load
from loadtests.mix import GROUPS
from loadtests.run import FOLDER, conclude, promised, record
from loadtests.runfile import Run
from loadtests.server import Service, service
from loadtests.slo import ALL
from loadtests.tables import bar_lines

NAME = "soak"
SHARE = 0.6
"""Of the capacity that is asked for."""
SETTLED_SECONDS = 180.0
MEMORY_DRIFT, LATENCY_DRIFT = 1.05, 1.2
_PARTS = 10
"""Of a third."""
_SMOOTH = 15
"""Samples that a median of memory is taken of: a large answer on its way is no leak."""


def drift(run: Run) -> list[Bar]:
    """What a run that lasts must hold to."""
    third = run.seconds / 3
    first, last = (run.recording.total(None, start, start + third).response.percentile(99) for start in (0, 2 * third))
    usual_first, usual_last = (_usual_p99(run, start, start + third) for start in (0, 2 * third))
    errors = run.recording.total().errors
    reasons = ", ".join(f"{count} × {reason}" for reason, count in errors.most_common(3))
    return [
        Bar(f"requests that failed{f' ({reasons})' if reasons else ''}", "≤", 0, [errors.total()], "requests"),
        Bar("p99 of the last third over the first one's", "≤", LATENCY_DRIFT, [last / first], "×"),
        Bar("the same of their median tenths, minutes of 30", "≤", LATENCY_DRIFT, [usual_last / usual_first], "×"),
        *_memory(run),
    ]


def pace(run: Run) -> str:
    """How much longer the models took for a row in the last third than in the first one, in words.

    Their work is the same all the time, so that a machine that gets slower shows here as well, and a service that
    drifts does not. Empty if the server was not sampled in both.
    """
    third, ratios = run.seconds / 3, {}
    seconds, rows = (by_model(run, f"sextant_{name}") for name in ("compute_seconds", "batch_rows"))
    for model in sorted(seconds.keys() & rows.keys()):
        times, a_batch = seconds[model]
        a_row = a_batch / rows[model][1]
        asked = np.isfinite(a_row)
        first, last = (a_row[asked & (times >= start) & (times <= start + third)] for start in (0, 2 * third))
        if first.size and last.size:
            ratios[model] = float(np.median(last) / np.median(first))
    if not ratios:
        return ""
    each = ", ".join(f"{model} {ratio:.3g}" for model, ratio in ratios.items())
    return f"The models themselves took {np.median(list(ratios.values())):.3g} × as long a row ({each})."


def _usual_p99(run: Run, start: float, end: float) -> float:
    """The median of the p99s of ten parts: what drifts shows in most of them, a stall of the machine in one or two."""
    edges = np.linspace(start, end, max(1, min(_PARTS, int(end - start))) + 1)  # of a second at least
    cells = [run.recording.total(None, *between) for between in pairwise(edges)]
    return float(np.median([cell.response.percentile(99) for cell in cells]))


def _memory(run: Run) -> Iterator[Bar]:
    """Of each process of the service, if it is ours."""
    settled = min(SETTLED_SECONDS, run.seconds / 10)
    samples = [sample for sample in run.server if sample.t >= settled and sample.resident_mb]
    if not samples:
        return
    there = [sample.resident_mb.keys() for sample in samples]
    stayed = set.intersection(*map(set, there))
    fleeting = set.union(*map(set, there)) - stayed
    yield Bar("processes of the service that came or went", "≤", 0, [len(fleeting)], "processes")
    for process in sorted(stayed, key=int):
        megabytes = np.array([sample.resident_mb[process] for sample in samples])
        smooth = [np.median(megabytes[at : at + _SMOOTH]) for at in range(max(1, len(megabytes) - _SMOOTH + 1))]
        apart = max(max(value / smooth[0], smooth[0] / value) for value in smooth)
        what = f"process {process}: memory apart from the {smooth[0]:.0f} MB after {settled:.0f} s, at any time"
        yield Bar(what, "≤", MEMORY_DRIFT, [float(apart)], "×")


def _rate(told_rate: float | None, on: Service, like: dict[str, int], slo_path: Path) -> float:
    """The rate that was given, or `SHARE` of the capacity, measured now."""
    if told_rate is not None:
        return told_rate
    allowed = capacity.limits(promised(slo_path, GROUPS[ALL]), ALL)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        seconds = capacity.SETTLE_SECONDS + capacity.PROBE_SECONDS
        prober = capacity.Prober(on, {**like, "route": ALL, "seconds": seconds}, allowed, Path(folder) / "locust.log")
        found = capacity.measure(prober, ALL, allowed, capacity.START_RATE, 1)
    print(found)
    return SHARE * found.rate


def main(arguments: Sequence[str]) -> int:
    """Run the command; see the module for what it returns."""
    parser = options.parser(NAME, "loadtests.soak", __doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, metavar="M", help="length of the run (%(default)g)")
    add("--rate", type=float, metavar="R", help=f"requests a second ({SHARE:.0%} of the capacity, measured first)")
    add("--folder", type=Path, help="for what was found (runs/loadtests/soak-TIME)")
    told = parser.parse_args(arguments)
    like = {"processes": told.processes, "seed": told.seed}
    length = 60 * told.minutes
    Load(shape="soak", rate=1.0 if told.rate is None else told.rate, seconds=length, **like)  # or say now why not
    slo = promised(told.slo, GROUPS[ALL])
    folder = told.folder or FOLDER / f"soak-{time.strftime('%Y%m%d-%H%M%S')}"
    with service(told.host, told.port, start=True) as on:
        rate = _rate(told.rate, on, like, told.slo)
        asked = Load(shape="soak", rate=rate, seconds=length, **like)
        print(f"{asked}, at {on.note}", flush=True)
        run = record(asked, on, folder)
    bars = drift(run)
    print(f"{bar_lines(bars)}\n{pace(run)}")
    status = conclude(run, slo, folder)
    drifted = any(bar.met is False for bar in bars)
    return options.BROKEN if status == options.MET and drifted else status


if __name__ == "__main__":
    sys.exit(options.run(NAME, main, sys.argv[1:]))
