"""A bench run as people read it: Markdown tables, a chart, and the table in the README."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from loadtests.bars import Bar, bars
from loadtests.measurements import Measurements, middle

START, END = "<!-- bench: written by make bench -->", "<!-- bench: end -->"
LEAST_BUSY = 0.9
"""Share of its core that a server under a closed loop gets, unless something else is running."""
_NONE = "–"


class MarkerError(ValueError):
    """A file has no place marked for the table."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; every column but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def bars_table(found: Measurements) -> str:
    """What is asked, what was measured, and whether it is met; of a partial run, what it measured."""
    shown = [bar for bar in bars(found) if found.options["whole"] or bar.met is not None]
    return bar_lines(shown)


def bar_lines(shown: Iterable[Bar]) -> str:
    """A Markdown table of bars."""
    rows = ([bar.what, bar.required, bar.figure, bar.verdict] for bar in shown)
    return table(["what", "required", "measured", "verdict"], rows)


def report(found: Measurements, chart: str) -> str:
    """The whole run in Markdown."""
    options = found.options
    how = (
        f"Each server on one core, the load generator on the other, {options['connections']} connections unless a row "
        f"says otherwise. {options['repeats']} repeats of {options['seconds']:g} s, in which the servers take turns of "
        "half a second; medians, and ratios taken within a repeat. A request that is not answered 2xx does not count "
        "in requests/s; † marks cells with such, ‡ those whose generator had a full core.\n"
    )
    sections = [
        "# Side by side\n",
        f"{about(found)}\n",
        how,
        f"{disturbed(found)}\n",
        f"![Requests a second by payload and server]({chart})\n",
        "## What is asked, and what was measured\n",
        bars_table(found),
        "## Requests/s\n",
        _by_server(found, _rate),
        "## Sextant's requests/s over each server's\n",
        _by_server(found, _advantage, besides="sextant"),
        "## Latency, p50 / p99 in ms\n",
        _by_server(found, _latency),
        "## Share of its core that the server got\n",
        _by_server(found, lambda found, case, server: _number(found.median((case, server), "server_busy"), "{:.2f}")),
        "## CPU milliseconds a request, the server's processes together\n",
        _by_server(found, lambda found, case, server: _number(found.median((case, server), "cpu_ms"), "{:.3f}")),
        "## Resident memory in MB, of the largest process / of all\n",
        _by_server(found, _memory),
        "## Starting\n",
        table(
            ["server", "seconds to ready, on one core"],
            (
                [told["title"], _number(told.get("ready_seconds"), "{:.1f}") + _error(told)]
                for told in found.servers.values()
            ),
        ),
    ]
    if found.in_process:
        sections += ["## onnxruntime alone, one thread: rows/s\n", _in_process(found)]
    return "\n".join(sections)


def summary(found: Measurements, report_path: str, chart: str) -> str:
    """The part that the README shows."""
    measured = [bar for bar in bars(found) if bar.met is not None]
    how = (
        f"Requests/s, one core for the server, {found.options['connections']} connections, median of "
        f"{found.options['repeats']} ([latency, CPU, memory]({report_path}), [chart]({chart})):\n"
    )
    rates = _by_server(found, _rate, [case for case, told in found.cases.items() if told["main"]])
    met = sum(bar.met is True for bar in measured)
    return "\n".join([how, rates, f"{about(found)} {met} of {len(measured)} bars are met.\n"])


def about(found: Measurements) -> str:
    """The machine, the versions and the day in one paragraph."""
    machine = found.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}; "
        f"{versions}; {machine['date']}."
    )


def disturbed(found: Measurements) -> str:
    """How many rows of the comparison are in doubt, since their server did not get its core; empty if none."""
    rows = [row for row in found.rows if found.cases[row["case"]]["main"]]
    robbed = [row for row in rows if row["server_busy"] < LEAST_BUSY]
    if not robbed:
        return ""
    where = ", ".join(dict.fromkeys(f"{row['case']} → {row['server']}" for row in robbed))
    return f"In {len(robbed)} of {len(rows)} the server got less than {LEAST_BUSY:.0%} of its core: {where}."


def put_between_markers(path: Path, text: str, start: str = START, end: str = END) -> None:
    """Replace what stands between two markers of a file, the bench's unless others are given.

    Raises:
        MarkerError: they are not there, once each and in order.
    """
    told = path.read_text("utf-8")
    before, _, rest = told.partition(start)
    _, _, after = rest.partition(end)
    if (told.count(start), told.count(end), rest.count(end)) != (1, 1, 1):
        raise MarkerError(f'{path.name}: expected one "{start}" and after it one "{end}"')
    path.write_text(f"{before}{start}\n{text}{end}{after}", "utf-8")


def draw(found: Measurements, path: Path) -> None:
    """Bars of requests/s by payload, a colour a server, on a log scale."""
    cases = [case for case, told in found.cases.items() if told["main"]]
    titles = {
        name: title for name, title in found.titles().items() if any(found.each((c, name), "p50_ms") for c in cases)
    }
    figure = Figure(figsize=(max(9.0, 1.5 * len(cases)), 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    width = 0.86 / max(len(titles), 1)
    lowest = min((row["requests_per_second"] for row in found.rows if row["requests_per_second"]), default=1.0)
    for number, (name, title) in enumerate(titles.items()):
        rates = [found.median((case, name), "requests_per_second") for case in cases]
        places = np.arange(len(cases)) + (number - (len(titles) - 1) / 2) * width
        drawn = axes.bar(places, [rate or np.nan for rate in rates], width, label=title)
        axes.bar_label(drawn, [_short(rate) for rate in rates], fontsize=5.5, rotation=90, padding=2)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=lowest / 3)  # the lowest bar is still a bar
    axes.set_xticks(range(len(cases)), cases)
    axes.set_ylabel("requests/s")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=min(3, max(len(titles), 1)), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


Show = Callable[[Measurements, str, str], str]


def _by_server(
    found: Measurements, show: Show, cases: Sequence[str] | None = None, *, besides: str | None = None
) -> str:
    """A row a case, a column a server that has a figure in one of them; or of the cases ``besides`` another server."""
    chosen = list(found.cases) if cases is None else cases
    measured = {(row["case"], row["server"]) for row in found.rows if row["server"] != besides}
    if besides is not None:
        with_it = {row["case"] for row in found.rows if row["server"] == besides}
        chosen = [case for case in chosen if case in with_it]
    servers = [name for name in found.servers if any((case, name) in measured for case in chosen)]
    titles = found.titles()
    rows = (
        [case, *(show(found, case, name) if (case, name) in measured else _NONE for name in servers)] for case in chosen
    )
    return table(["payload", *(titles[name] for name in servers)], rows)


def _rate(found: Measurements, case: str, server: str) -> str:
    failed = sum(found.each((case, server), "failed").values())
    bound = any(found.each((case, server), "generator_bound").values())
    rate = found.median((case, server), "requests_per_second")
    return f"{_short(rate)}{'†' if failed else ''}{'‡' if bound else ''}"


def _advantage(found: Measurements, case: str, server: str) -> str:
    return _number(middle(found.ratios((case, "sextant"), (case, server))), "{:.2f}")


def _latency(found: Measurements, case: str, server: str) -> str:
    p50, p99 = (found.median((case, server), name) for name in ("p50_ms", "p99_ms"))
    return f"{_number(p50, '{:.2f}')} / {_number(p99, '{:.2f}')}"


def _memory(found: Measurements, case: str, server: str) -> str:
    worker, tree = (found.median((case, server), name) for name in ("worker_mb", "resident_mb"))
    return f"{_number(worker, '{:.0f}')} / {_number(tree, '{:.0f}')}"


def _in_process(found: Measurements) -> str:
    def row(name: str) -> list[str]:
        batches = sorted({entry["best_batch"] for entry in found.in_process if entry["name"] == name})
        one, best = (
            middle(found.limit(name, figure).values()) for figure in ("rows_per_second", "best_rows_per_second")
        )
        return [name, _short(one), _short(best), " or ".join(map(str, batches))]

    names = dict.fromkeys(entry["name"] for entry in found.in_process)
    return table(["model", "batch of one", "best batch", "which is"], map(row, names))


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else form.format(value)


def _short(rate: float | None) -> str:
    """A rate with three figures or all its whole ones."""
    return _NONE if rate is None else f"{rate:.3g}" if rate < 100 else f"{rate:.0f}"


def _error(told: dict[str, str]) -> str:
    return f" ({told['error'].splitlines()[0]})" if "error" in told else ""
