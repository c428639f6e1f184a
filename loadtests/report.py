"""A load test as one HTML file that needs nothing beside it: the verdict, tables and pictures.

``python -m loadtests.report FOLDER`` writes it anew for a run that was kept, by today's SLO or another.
"""

from __future__ import annotations

import argparse
import base64
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Literal

from loadtests.figures import pictures
from loadtests.record import Cell, Histogram
from loadtests.runfile import Run
from loadtests.slo import ALL, DEFAULT, FIGURES, Check, Slo, checks, in_order, knee, load

FILE = "report.html"
_NONE = "–"
_TIMES = ("p50", "p95", "p99", "p99.9", "longest")
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1f23; background: #fff; max-width: 66rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.35rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
.verdict { border-left: .5rem solid #777; background: #f4f4f5; padding: .8rem 1rem; }
.verdict p { margin: .2rem 0 0; }
.verdict strong { font-size: 1.25rem; }
.met { border-color: #1b7f4b; } .broken { border-color: #b3261e; } .invalid { border-color: #c77700; }
.facts { color: #555; margin: .8rem 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .55rem; text-align: right; border-bottom: 1px solid #e2e2e5; white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #999; vertical-align: bottom; }
td.bad { color: #b3261e; font-weight: 600; } td.good { color: #1b7f4b; }
figure { margin: .5rem 0 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: .9rem; max-width: 50rem; }
pre { background: #f4f4f5; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def write(folder: Path, run: Run, slo: Slo | None = None) -> Path:
    """Write ``report.html`` and its pictures into a folder.

    Args:
        slo: what the run is held to; the repository's own unless given.

    Returns:
        Path of the report.

    Raises:
        SloError: nothing is promised for any route of the run.
    """
    slo = load(DEFAULT) if slo is None else slo
    found = checks(slo, run)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for picture in pictures(run, slo):
        path = folder / f"{picture.name}.png"
        picture.figure.savefig(path)
        drawn.append(_section(picture.title, _image(path, picture.title, picture.text)))
    tone, verdict, figure = headline(run, slo, found)
    title = f"Load test: {run.about.get('shape', '')}, {str(run.about.get('started', ''))[:16].replace('T', ' ')}"
    told = {name: value for name, value in run.about.items() if name not in {"machine", "versions"}}
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="verdict {tone}"><strong>{escape(verdict)}</strong><p>{escape(figure)}</p></div>',
        f'<p class="facts">{escape(facts(run))}</p>',
        _section("By route", _by_route(run)),
        _section("Held to the SLO", _promises(run, slo, found)),
        _errors(run),
        *drawn,
        _section("Machine", _about(run.about.get("machine"))),
        _section("Versions", _about(run.about.get("versions"))),
        _section("The run", _about(told)),
        _section("Again", f"<pre>{escape(command(run))}</pre>"),
    ]
    path = folder / FILE
    path.write_text(_PAGE.format(title=escape(title), style=_STYLE, body="\n".join(body)), "utf-8")
    return path


def headline(run: Run, slo: Slo, found: Sequence[Check]) -> tuple[Literal["met", "broken", "invalid"], str, str]:
    """Class of the verdict, the verdict, and the figure that matters.

    Of broken promises that is the one furthest beyond its limit; of kept ones the closest to it, rates aside, whose
    limit may be the load's own.
    """
    breaches = [check for check in found if not check.met]
    if not run.valid:
        return "invalid", "Invalid: no figure of this run counts", run.invalid
    costs = [check for check in found if check.figure != "least_rate"]
    worst = max(breaches or costs or found, key=lambda check: check.used)
    where = ""
    if run.about.get("shape") == "steps":
        stage = knee(slo, run)
        where = (
            "No rate was served within the SLO. " if stage is None else f"Knee at {_load(stage.rate, stage.users)}. "
        )
    if breaches:
        more = f". {len(breaches)} promises of {len(found)} were broken" if len(breaches) > 1 else ""
        return "broken", "SLO broken", f"{where}{worst}{more}"
    used = f" ({worst.used:.0%} of what is allowed)" if costs else ""
    return "met", "SLO met", f"{where}Closest to its limit: {worst}{used}"


def facts(run: Run) -> str:
    """What was done, in one line."""
    about, cell = run.about, run.recording.total()
    load = f"{about.get('loop', 'open')} loop"
    if run.open_loop:
        load += f", {about.get('arrivals', 'constant')} arrivals"
    return (
        f"{about.get('host', '')}: {load}, {_load(about.get('rate'), about.get('users'))} for {run.seconds:g} s; "
        f"{cell.count} requests, {cell.failed} of them failed."
    )


def command(run: Run) -> str:
    """How to run the same load again."""
    about = run.about
    arguments = {
        "host": about.get("host"),
        "loop": about.get("loop"),
        "shape": about.get("shape"),
        "route": _group(run.routes),
        "rate": about.get("rate") if run.open_loop else None,
        "clients": None if run.open_loop else about.get("users"),
        "minutes": _number(run.seconds / 60, 4),
        "arrivals": about.get("arrivals") if run.open_loop else None,
        "seed": about.get("seed"),
        "processes": about.get("processes"),
        "record": "run.json",
    }
    told = [f"--{name} {shlex.quote(str(value))}" for name, value in arguments.items() if value is not None]
    return " ".join(["locust -f loadtests/locustfile.py --headless", *told])


def _group(routes: Sequence[str]) -> str:
    """The word that asks for these routes."""
    if len(routes) == 1:
        return routes[0]
    return "digit" if all(route.startswith("digit-") for route in routes) else "all"


def _by_route(run: Run) -> str:
    head = (
        '<tr><th rowspan="2">route</th><th rowspan="2">requests</th><th rowspan="2">served/s</th>'
        '<th rowspan="2">errors</th><th colspan="5">response, ms</th><th colspan="5">service, ms</th>'
        '<th rowspan="2">sent late,<br>p99, ms</th></tr>'
        f"<tr>{''.join(f'<th>{name}</th>' for name in _TIMES * 2)}</tr>"
    )
    rows = []
    for route in run.routes if len(run.routes) == 1 else [*in_order(run.routes), ALL]:
        cell = run.recording.total(None if route == ALL else route)
        counts = [str(cell.count), _number(cell.ok / run.seconds), _share(cell)]
        late = _ms(cell.late.percentile(99)) if run.open_loop else _NONE
        rows.append([route, *counts, *_times(cell.response), *_times(cell.service), late])
    note = (
        "Response counts from when a request was due: what a user waits. Service counts from when it was sent. Both "
        "hold failed requests too, as long as they were waited for. Percentiles are at most 1 % too long."
    )
    return _table(head, rows) + _note(note)


def _promises(run: Run, slo: Slo, found: Sequence[Check]) -> str:
    routes = list(dict.fromkeys(check.route for check in found))
    figures = [figure for figure in FIGURES if any(check.figure == figure for check in found)]
    cells = {(check.route, check.figure): check for check in found}
    rows = [[route, *(_promise(run, cells.get((route, figure))) for figure in figures)] for route in routes]
    note = "Measured, and what is promised."
    if run.about.get("shape") == "steps":
        stage = knee(slo, run) or run.stages[0]
        note += (
            f" Steps are held to the SLO from second {stage.start:g} to {stage.end:g}: at the knee, or in the first "
            "stage if there is none."
        )
    names = [figure.removesuffix("_ms").replace("_", " ") for figure in figures]
    return _table(_head("route", *names), rows, marks={"✓": "good", "✗": "bad"}) + _note(note)


def _promise(run: Run, check: Check | None) -> str:
    if check is None:
        return ""
    measured, limit = check.values
    signs = ("≥", "<") if check.figure == "least_rate" else ("≤", ">")
    mark = "" if not run.valid else "✓ " if check.met else "✗ "
    return f"{mark}{measured} {signs[0] if check.met else signs[1]} {limit}"


def _errors(run: Run) -> str:
    rows = [
        [route, str(count), reason]
        for route in in_order(run.recording.routes())
        for reason, count in run.recording.total(route).errors.most_common()
    ]
    return _section("Errors", _table(_head("route", "requests", "reason"), rows, text=(2,))) if rows else ""


def _about(told: object) -> str:
    items = told.items() if isinstance(told, Mapping) else [("", told)]
    return _table("", [[str(name), _plain(value)] for name, value in items], text=(1,))


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return _NONE if value is None else str(value)


def _head(*names: str) -> str:
    return f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"


def _table(
    head: str, rows: Iterable[Sequence[str]], text: Sequence[int] = (), marks: Mapping[str, str] | None = None
) -> str:
    """Rows of plain text under a head of HTML.

    Args:
        text: columns that hold words; the others, but the first, hold numbers.
        marks: classes of cells, by their first word.
    """

    def cell(column: int, value: str) -> str:
        classes = ["text"] * (column in text) + [name for word, name in (marks or {}).items() if value.startswith(word)]
        return f'<td class="{" ".join(classes)}">{escape(value)}</td>' if classes else f"<td>{escape(value)}</td>"

    body = "\n".join(f"<tr>{''.join(cell(*place) for place in enumerate(row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>\n{body}\n</tbody></table></div>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}"


def _image(path: Path, title: str, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(title)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def _times(histogram: Histogram) -> Iterable[str]:
    return [*(_ms(histogram.percentile(q)) for q in (50, 95, 99, 99.9)), _ms(histogram.max)]


def _share(cell: Cell) -> str:
    return f"{100 * cell.failed / cell.count:.3g} %" if cell.count else _NONE


def _load(rate: float | None, users: int | None) -> str:
    return f"{_number(rate)} requests/s" if rate is not None else f"{users} users"


def _ms(seconds: float) -> str:
    return _number(1000 * seconds)


def _number(value: float, digits: int = 3) -> str:
    if math.isnan(value):
        return _NONE
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def main(arguments: list[str]) -> int:
    """0 when written; 2 for bad use."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the run, with run.json in it")
    parser.add_argument("--slo", type=Path, default=DEFAULT, metavar="FILE", help="(loadtests/slo.toml)")
    options = parser.parse_args(arguments)
    try:
        path = write(options.folder, Run.load(options.folder), load(options.slo))
    except ValueError as error:
        parser.error(str(error))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
