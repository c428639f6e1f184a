"""``make loadtest``: put a load on the service, judge it by the SLO, and write a report.

The service is the one that answers on 127.0.0.1, or one that is started for this; ``--host`` names another. Ends with
0 when the SLO is met, 1 when it is not (a line for each promise broken), 2 for bad use, and 3 when the run is invalid,
because the generator did not keep up: then its figures say nothing of the service.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loadtests import junit, options, report
from loadtests.load import Load, generate
from loadtests.processes import ROOT
from loadtests.runfile import FILE, Run
from loadtests.server import Sampler, Service, service
from loadtests.shapes import SHAPES
from loadtests.slo import ALL, Check, Slo, SloError, checks, load

FOLDER = ROOT / "runs" / "loadtests"
"""Of the runs; git ignores it."""
JUNIT = "junit.xml"
NAME = "loadtest"


def record(put: Load, on: Service, folder: Path) -> Run:
    """Put a load on a service, sampling it meanwhile, and write what was found to a folder.

    Raises:
        loadtests.load.GeneratorError: Locust recorded nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=round(put.length), desc=str(put), unit="s", disable=None, leave=False) as bar, Sampler(on) as seen:
        document = generate(put, on.url, folder / "locust.log", on.generator, _progress(bar))
    about = document["about"]
    about["route"] = put.route
    if on.processes is not None:
        about["versions"] |= {name: version(name) for name in ("bentoml", "onnxruntime")}
    document["server"] = seen.since(datetime.fromisoformat(about["started"]).timestamp())
    (folder / FILE).write_text(json.dumps(document), "utf-8")
    return Run.from_json(document)


def promised(path: Path, routes: Sequence[str]) -> Slo:
    """An SLO that says something of some of these routes.

    Raises:
        SloError: it does not, or the file is malformed.
    """
    slo = load(path)
    if not {ALL, *routes} & slo.objectives.keys():
        raise SloError(f"{path}: promises nothing for {', '.join(routes)}, which is what this run asks")
    return slo


def conclude(run: Run, slo: Slo, folder: Path) -> int:
    """Write the verdict and the report into the run's folder, and tell them: a line a breach, and one for all.

    Returns:
        The status that the command ends with.
    """
    found = checks(slo, run)
    breaches = [check for check in found if not check.met]
    junit.write(folder / JUNIT, slo, run, breaches)
    page = report.write(folder, run, slo)
    if run.valid:
        for breach in breaches:
            print(breach)
    print(f"{summary(run, slo, found)}\n{_relative(page)}")
    if not run.valid:
        return options.INVALID
    return options.BROKEN if breaches else options.MET


def summary(run: Run, slo: Slo, found: Sequence[Check]) -> str:
    """The verdict in one line, with the figures that matter."""
    _, verdict, figure = report.headline(run, slo, found)
    total = run.recording.total()
    p50, p99 = (1000 * total.response.percentile(q) for q in (50, 99))
    return (
        f"{verdict}. {figure}. {total.ok / run.seconds:.4g} requests/s answered well, {total.failed} of {total.count} "
        f"failed, p50 {p50:.3g} ms, p99 {p99:.3g} ms from when they were due"
    )


def _progress(bar: tqdm[Any]) -> Callable[[float], None]:
    """Moves a bar along with the seconds; it stays at its end while the last answers come."""

    def tick(seconds: float) -> None:
        assert bar.total is not None  # noqa: S101 - set where it is made
        bar.n = min(round(seconds), bar.total)
        bar.refresh()

    return tick


def _relative(path: Path) -> Path:
    """As it is typed here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def main(arguments: Sequence[str]) -> int:
    """Run the command; see the module for what it returns."""
    parser = options.parser(NAME, "loadtests.run", __doc__)
    add = parser.add_argument
    add("--shape", default="smoke", help=f"one of {', '.join(SHAPES)} (%(default)s)")
    add("--route", default=ALL, help="what is asked: all, digit, or a route of slo.toml (%(default)s)")
    add("--rate", type=float, default=100.0, metavar="R", help="requests a second, open loop (%(default)g)")
    add("--minutes", type=float, metavar="M", help="length of the run (the shape's own)")
    add("--loop", choices=["open", "closed"], default="open", help="requests follow the clock, or the answers")
    add("--clients", type=int, default=16, metavar="N", help="users who wait, closed loop (%(default)s)")
    add("--arrivals", choices=["constant", "poisson"], default="constant", help="of the open loop")
    add("--attempts", type=int, default=1, metavar="N", help="runs, until one is valid and meets the SLO (%(default)s)")
    add("--workers", type=int, default=0, metavar="N", help="wait for N Locust workers, which generate instead (none)")
    add(
        "--bind",
        default="0.0.0.0:5557",
        metavar="ADDRESS:PORT",
        help="at which they find Locust's master (%(default)s)",
    )
    add("--folder", type=Path, help="for what was found (runs/loadtests/SHAPE-TIME)")
    told = parser.parse_args(arguments)
    asked = Load(
        shape=told.shape,
        route=told.route,
        rate=told.rate,
        seconds=None if told.minutes is None else 60 * told.minutes,
        loop=told.loop,
        clients=told.clients,
        arrivals=told.arrivals,
        processes=told.processes,
        workers=told.workers,
        bind=told.bind,
        seed=told.seed,
    )
    if told.attempts < 1:
        parser.error(f"--attempts: expected at least 1, received {told.attempts}")
    slo = promised(told.slo, asked.routes)
    folder = told.folder or FOLDER / f"{told.shape}-{time.strftime('%Y%m%d-%H%M%S')}"
    with service(told.host, told.port) as on:
        print(f"{asked}, at {on.note}", flush=True)
        for left in reversed(range(told.attempts)):
            found = record(asked, on, folder)
            good = found.valid and all(check.met for check in checks(slo, found))
            if good or not left:
                break
            print(f"once more: {found.invalid or 'the SLO is not met'}", flush=True)
    return conclude(found, slo, folder)


if __name__ == "__main__":
    sys.exit(options.run(NAME, main, sys.argv[1:]))
