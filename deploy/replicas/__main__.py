"""``make replicas``: what clients notice when replicas behind HAProxy are replaced, killed, or hang.

Starts replicas of the service on this machine and HAProxy before them, with the configuration that lies in
``deploy/haproxy``, puts mixed requests on it by the clock at half of what all together can do, leaves them alone for a
while and then, one after another:

* rolling: ends and starts each replica in turn, as a new version would be rolled out;
* kill-replica: kills supervisor and workers of one with ``kill -9``, and starts it again;
* kill-worker: kills the worker of one, which its supervisor replaces;
* hang: stops all processes of one for 20 s;
* drain: ends one by itself, whose queue is full.

Figures, pictures and logs go to ``runs/replicas``. Ends with 0 when all that is asked is met, 1 when it is not, 2 for
bad use, and 3 when the figures do not count or there are none.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deploy.replicas.chart import draw
from deploy.replicas.drain import Drained, drain
from deploy.replicas.drain import line as drain_line
from deploy.replicas.findings import Finding, lines
from deploy.replicas.pool import Pool, settings
from deploy.replicas.proxy import program
from deploy.replicas.scenarios import SCENARIOS, perform
from loadtests import capacity, options
from loadtests.load import Load
from loadtests.processes import ROOT
from loadtests.runfile import FILE, Run
from loadtests.server import Service
from loadtests.slo import ALL, DEFAULT, Slo, load
from loadtests.tables import bar_lines

NAME: Final = "replicas"
FOLDER: Final = ROOT / "runs" / "replicas"
"""Of the runs; git ignores it."""
FIGURES, PICTURE = "replicas.json", "replicas.png"
DRAIN: Final = "drain"
SHARE: Final = 0.5
"""Of the joint capacity that is asked for."""
REQUESTS: Final = 20_000
QUIET_SECONDS: Final = 20.0
LEAST_QUIET: Final = 5.0


def _parse(arguments: Sequence[str]) -> Any:  # noqa: ANN401 - argparse's namespace
    parser = options.Parser(NAME, "deploy.replicas", __doc__)
    add = parser.add_argument
    every = ",".join((*SCENARIOS, DRAIN))
    add("--replicas", type=int, default=3, metavar="N", help="behind HAProxy (%(default)s)")
    add("--scenario", default=every, help="one after another (%(default)s)")
    add("--rate", type=float, metavar="R", help="requests a second (half of what all can do, searched first)")
    add("--requests", type=int, default=REQUESTS, metavar="N", help="of each scenario, at least (%(default)s)")
    add("--attempts", type=int, default=2, metavar="N", help="runs of each, until the generator kept up (%(default)s)")
    add("--quiet", type=float, default=QUIET_SECONDS, metavar="S", help="seconds before it (%(default)g)")
    add("--route", default=ALL, help="what is asked: all, digit, or a route of slo.toml (%(default)s)")
    add("--seed", type=int, default=0, help="of payloads and their order (%(default)s)")
    add("--slo", type=Path, default=DEFAULT, metavar="FILE", help="that the search goes by (loadtests/slo.toml)")
    add("--folder", type=Path, help="for what was found (runs/replicas/TIME)")
    told = parser.parse_args(arguments)
    told.scenario = told.scenario.split(",")
    unknown = set(told.scenario) - {*SCENARIOS, DRAIN}
    if unknown:
        parser.error(f"unknown scenario {', '.join(sorted(unknown))!r}; expected some of {every}")
    if told.replicas < 2 and set(told.scenario) != {DRAIN}:
        parser.error(f"--replicas: expected at least 2, one to go and one to answer; received {told.replicas}")
    if told.requests < 1 or told.attempts < 1 or told.quiet < LEAST_QUIET:
        received = f"received {told.requests}, {told.attempts} and {told.quiet:g}"
        parser.error(f"expected at least 1 request, 1 attempt and {LEAST_QUIET:g} quiet seconds, {received}")
    return told


def main(arguments: Sequence[str]) -> int:
    """Run the command; see the module for what it returns."""
    told = _parse(arguments)
    like = {"route": told.route, "seed": told.seed}
    Load(shape="steady", rate=1.0 if told.rate is None else told.rate, **like)  # or say now why not
    slo = load(told.slo)
    capacity.limits(slo, told.route)
    program()
    folder = told.folder or FOLDER / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    findings: list[Finding] = []
    drained: Drained | None = None
    rate: float | None = told.rate
    if wanted := [name for name in told.scenario if name != DRAIN]:
        print(f"{told.replicas} replicas behind HAProxy start", flush=True)
        with Pool(told.replicas, folder, settings()) as pool:
            print(f"all ready after {pool.start_seconds:.1f} s, at {pool.url}", flush=True)
            asked = rate = rate or SHARE * _capacity(pool, slo, like, folder)
            findings = [_measure(name, pool, asked, told, like, folder) for name in wanted]
    if DRAIN in told.scenario:
        print(f"{DRAIN}: one replica, its queue filled", flush=True)
        drained = drain(folder, settings())
        print(f"  {drain_line(drained)}", flush=True)
    return conclude(findings, drained, rate, told.replicas, folder)


def _capacity(pool: Pool, slo: Slo, like: Mapping[str, Any], folder: Path) -> float:
    """The highest rate that all replicas together answer within the SLO, in requests a second; one search."""
    route = like["route"]
    allowed = capacity.limits(slo, route)
    seconds = capacity.SETTLE_SECONDS + capacity.PROBE_SECONDS
    on = Service(pool.url, pool.processes)
    prober = capacity.Prober(on, {**like, "seconds": seconds}, allowed, folder / "capacity.log")
    found = capacity.measure(prober, route, allowed, capacity.START_RATE, 1)
    print(f"jointly {found}", flush=True)
    return found.rate


def _measure(name: str, pool: Pool, rate: float, told: Any, like: Mapping[str, Any], folder: Path) -> Finding:  # noqa: ANN401
    """Run a scenario; once more if the generator did not keep up, which says nothing of the replicas."""
    scenario, own = SCENARIOS[name], folder / name
    least = max(told.requests / rate + 1.0, scenario.seconds(told.replicas, pool.start_seconds))
    put = Load(shape="steady", rate=rate, seconds=math.ceil(told.quiet + least), **like)
    print(f"{scenario.title}: {rate:.4g} requests/s for {put.length:g} s, the first {told.quiet:g} s quiet", flush=True)
    for left in reversed(range(told.attempts)):
        found = perform(scenario, pool, put, told.quiet, own / "locust.log")
        (own / FILE).write_text(json.dumps(found.document), "utf-8")
        finding = Finding(
            name=name,
            title=scenario.title,
            run=Run.from_json(found.document),
            events=found.events,
            course=found.course,
            least=told.requests,
            outlasted=found.outlasted,
            retries=found.retries,
        )
        print(f"  {finding}", flush=True)
        if finding.run.valid or not left:
            break
        print("once more:", flush=True)
    return finding


def conclude(
    findings: Sequence[Finding], drained: Drained | None, rate: float | None, replicas: int, folder: Path
) -> int:
    """Write figures and picture, tell the tables, and return the status."""
    judged: list[Finding | Drained] = [*findings, *([] if drained is None else [drained])]
    bars = [bar for one in judged for bar in one.bars()]
    figures = {
        "replicas": replicas,
        "rate": rate,
        "about": findings[0].run.about if findings else None,
        "scenarios": {found.name: found.figures() for found in findings},
        DRAIN: drained.figures() if drained is not None else None,
    }
    (folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    if findings:
        draw(findings, folder / PICTURE)
        print(f"\n{lines(findings)}")
    print(f"\n{bar_lines(bars)}\n{folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder}")
    invalid = [one.invalid for one in judged if one.invalid]
    for reason in invalid:
        print(f"INVALID: {reason}", file=sys.stderr)
    if invalid:
        return options.INVALID
    return options.MET if all(bar.met for bar in bars) else options.BROKEN


if __name__ == "__main__":
    sys.exit(options.run(NAME, main, sys.argv[1:]))
