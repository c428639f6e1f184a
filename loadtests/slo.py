"""What the service has promised (``slo.toml``), and whether a run kept it.

Percentiles are of response times, counted from when a request was due, with those of failed requests that somebody
waited for. They are at most 1 % too long (`loadtests.record.Histogram`): a promise just kept may be called broken,
never the other way round.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from loadtests.mix import GROUPS
from loadtests.record import Cell
from loadtests.runfile import Run, Stage

ALL: Final = "all"
"""The section for all routes together."""
ROUTES: Final = GROUPS[ALL]
SERVED: Final = 0.95
"""Share of the asked rate that must be answered well for the rate to count as served."""
DEFAULT: Final = Path(__file__).with_name("slo.toml")


class SloError(ValueError):
    """An SLO file is malformed, or says nothing of what a run asked for."""


@dataclass(frozen=True)
class Objective:
    """The promises for one route; None promises nothing.

    Args:
        p50_ms: longest median response.
        p95_ms: longest 95th percentile of responses.
        p99_ms: longest 99th percentile of responses.
        error_share: of all requests, 0 to 1.
        least_rate: good answers a second. Where the load asks for less than that, `SERVED` of what it asks.
    """

    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    error_share: float | None = None
    least_rate: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        """What is promised, by name."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in limits.items() if limit is not None}


FIGURES: Final = tuple(field.name for field in fields(Objective))


@dataclass(frozen=True)
class Slo:
    """The promises by route."""

    objectives: Mapping[str, Objective]


@dataclass(frozen=True)
class Check:
    """One promise held against a run.

    Args:
        route: or `ALL`.
        figure: one of `FIGURES`.
        limit: the promise.
        measured: nan when there was no answer to measure.
        detail: what else to say of it; may be empty.
    """

    route: str
    figure: str
    limit: float
    measured: float
    detail: str = ""

    @property
    def met(self) -> bool:
        """Whether the promise was kept; not, when nothing could be measured."""
        return self.measured >= self.limit if self.figure == "least_rate" else self.measured <= self.limit

    @property
    def used(self) -> float:
        """Share of what is allowed that was used: above 1 when the promise was broken, inf without a measurement."""
        over, under = (self.limit, self.measured) if self.figure == "least_rate" else (self.measured, self.limit)
        if math.isnan(self.measured):
            return math.inf
        return over / under if under else math.inf if over else 0.0

    @property
    def values(self) -> tuple[str, str]:
        """What was measured and what is allowed, in words, with as many digits as it takes to tell them apart."""
        scale, form = {"error_share": (100.0, "{} %"), "least_rate": (1.0, "{}/s")}.get(self.figure, (1.0, "{} ms"))
        texts = next(
            (pair for digits in range(3, 9) if len(set(pair := self._rounded(scale, digits))) == 2),
            self._rounded(scale, 3),
        )
        measured, limit = (form.format(text) for text in texts)
        return ("no answer" if math.isnan(self.measured) else measured), limit

    def __str__(self) -> str:
        measured, limit = self.values
        name = self.figure.removesuffix("_ms").replace("_", " ")
        what = {"error_share": f"{measured} errors", "least_rate": f"{measured} answered well"}.get(
            self.figure, f"{name} of {measured}"
        )
        if math.isnan(self.measured):
            what = f"no answer to take the {name} of"
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.route}: {what}{detail}; at {'least' if self.figure == 'least_rate' else 'most'} {limit}"

    def _rounded(self, scale: float, digits: int) -> tuple[str, str]:
        return _number(self.measured * scale, digits), _number(self.limit * scale, digits)


Breach = Check
"""A promise that was not kept."""


def load(path: Path) -> Slo:
    """Read the promises.

    Raises:
        SloError: the file cannot be read, names what is not known, or gives a figure that cannot be meant.
    """
    try:
        told = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SloError(f"{path}: {error.strerror or error}; expected an SLO file such as {DEFAULT.name}") from error
    except ValueError as error:
        raise SloError(f"{path}: not TOML: {error}") from error
    try:
        objectives = {route: _objective(route, section) for route, section in told.items()}
    except SloError as error:
        raise SloError(f"{path}: {error}") from error
    if not any(objective.limits for objective in objectives.values()):
        raise SloError(f"{path}: no objective in it; expected sections [{'], ['.join((ALL, *ROUTES))}]")
    return Slo(objectives)


def judge(slo: Slo, run: Run) -> list[Breach]:
    """The promises that the run broke; see `checks`.

    Raises:
        SloError: nothing is promised for any route of the run.
    """
    return [check for check in checks(slo, run) if not check.met]


def checks(slo: Slo, run: Run) -> list[Check]:
    """Every promise for what the run asked for, in the order of the file.

    A run of the shape ``steps`` goes beyond what the service can do, to find where that is: it is held to the promises
    at its `knee`, or in its first stage if it has none.

    Raises:
        SloError: nothing is promised for any route of the run.
    """
    start, end = 0.0, run.seconds
    asked = _rates(run, [Stage(start, end, None, None)])
    if run.about.get("shape") == "steps" and run.stages:
        stage = knee(slo, run) or run.stages[0]
        start, end, asked = stage.start, stage.end, _rates(run, run.stages)
    found = _between(slo, run, start, end, asked if run.open_loop else {})
    if not found:
        raise SloError(f"the SLO promises nothing for {', '.join(run.routes) or 'a run without requests'}")
    return found


def in_order(routes: Iterable[str]) -> list[str]:
    """As `ROUTES` has them, unknown ones last."""
    return sorted(routes, key=lambda route: (ROUTES.index(route) if route in ROUTES else len(ROUTES), route))


def knee(slo: Slo, run: Run) -> Stage | None:
    """The last stage that holds: `SERVED` of the asked rate answered well, and every promise but ``least_rate`` kept.

    So a server's throughput is defined by the latency that it must keep, as in MLPerf Inference's server scenario
    (Reddi et al., ISCA 2020), not by the shape of the curve. None when no stage holds.
    """
    return next((stage for stage in reversed(run.stages) if _holds(slo, run, stage)), None)


def _holds(slo: Slo, run: Run, stage: Stage) -> bool:
    cell = run.recording.total(None, stage.start, stage.end)
    # Chance has its say in how many requests a Poisson process makes; in the closed loop the server has.
    by_clock = stage.rate is not None and run.about.get("arrivals") != "poisson"
    asked = stage.rate * _whole_seconds(stage.start, stage.end) if stage.rate and by_clock else cell.count
    if not cell.count or cell.ok < SERVED * asked:
        return False
    found = _between(slo, run, stage.start, stage.end, {})
    return all(check.met for check in found if check.figure != "least_rate")


def _between(slo: Slo, run: Run, start: float, end: float, asked: Mapping[str, float]) -> list[Check]:
    """The checks on the requests due in a part of the run.

    Args:
        asked: requests a second that the load asked for by route, where that bounds ``least_rate``.
    """
    found = []
    for route, objective in slo.objectives.items():
        if route != ALL and route not in run.routes:
            continue
        cell = run.recording.total(None if route == ALL else route, start, end)
        if not cell.count and run.recording.total(None if route == ALL else route).count:
            continue  # rare enough to miss this part; one that was never answered at all is judged, and fails
        for figure, promised in objective.limits.items():
            limit, detail = promised, ""
            if figure == "least_rate" and SERVED * asked.get(route, math.inf) < promised:
                limit, detail = SERVED * asked[route], f"asked for {_number(asked[route], 3)}/s"
            elif figure == "error_share":
                detail = ", ".join(f"{reason}: {count}" for reason, count in cell.errors.most_common(3))
            found.append(Check(route, figure, limit, _measured(cell, figure, _whole_seconds(start, end)), detail))
    return found


def _measured(cell: Cell, figure: str, seconds: float) -> float:
    if figure == "error_share":
        return cell.failed / cell.count if cell.count else math.nan
    if figure == "least_rate":
        return cell.ok / seconds
    return 1000 * cell.response.percentile(float(figure.removeprefix("p").removesuffix("_ms")))


def _rates(run: Run, stages: list[Stage] | tuple[Stage, ...]) -> dict[str, float]:
    """The highest rate of any stage by route: what the load asked for, answered or not."""
    return {
        route: max(
            run.recording.total(None if route == ALL else route, stage.start, stage.end).count
            / _whole_seconds(stage.start, stage.end)
            for stage in stages
        )
        for route in (ALL, *run.routes)
    }


def _whole_seconds(start: float, end: float) -> float:
    """Length of what `Recording.total` adds up from ``start`` to ``end``: the seconds that begin within."""
    return max(end - math.ceil(start), 0.0) or 1.0


def _objective(route: str, section: Any) -> Objective:  # noqa: ANN401 (whatever a file may hold)
    if route not in {ALL, *ROUTES}:
        raise SloError(f'unknown route "{route}"; known are {", ".join((ALL, *ROUTES))}')
    if not isinstance(section, dict):
        raise SloError(f"expected a section [{route}], received {route} = {section!r}")
    for figure, limit in section.items():
        if figure not in FIGURES:
            raise SloError(f'[{route}] unknown key "{figure}"; known are {", ".join(FIGURES)}')
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise SloError(f"[{route}] {figure}: expected a number, received {limit!r}")
        if not (math.isfinite(limit) and limit >= 0):
            raise SloError(f"[{route}] {figure}: expected a finite number of at least 0, received {limit!r}")
        if figure == "error_share" and limit > 1:
            raise SloError(f"[{route}] error_share: expected a share from 0 to 1, received {limit!r}")
    return Objective(**section)


def _number(value: float, digits: int) -> str:
    """With so many digits, and all those before the point."""
    return f"{value:.{digits}g}" if abs(value) < 10 ** (digits - 1) else f"{value:.0f}"
