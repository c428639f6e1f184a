"""What clients noticed of a scenario: figures, and what is asked of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

from deploy.replicas.scenarios import Course, Event
from loadtests.bars import Bar
from loadtests.record import Cell
from loadtests.runfile import Run
from loadtests.tables import table

SETTLE_SECONDS: Final = 2.0
"""At the beginning of a run, for connections to open; neither quiet nor disturbed."""
ROLLING_P99: Final = 3.0
"""Times the quiet p99 that a rolling restart may bring it to; also what makes a second count as disturbed."""
FAILED_PERCENT: Final = 0.05
"""Of all requests, when a replica dies or hangs and HAProxy sends again what it was asked."""
BACK_SECONDS: Final = 5.0
"""From the death of a worker to the answer of its successor."""


@dataclass(frozen=True)
class Finding:
    """One scenario under load.

    Args:
        name: of `deploy.replicas.scenarios.SCENARIOS`.
        title: as tables name it.
        run: from the first quiet second to the last disturbed one.
        events: the first of which begins the disturbance.
        least: requests there have to be since the first event for the figures to count.
        outlasted: whether the scenario went on when the load was over.
        retries: requests that HAProxy gave to another replica after all, in the whole run.
    """

    name: str
    title: str
    run: Run
    events: tuple[Event, ...]
    course: Course
    least: int
    outlasted: bool = False
    retries: int = 0

    def __str__(self) -> str:
        before, now = (1000 * cell.response.percentile(99) for cell in (self.quiet, self.disturbed))
        invalid = f"; INVALID: {self.invalid}" if self.invalid else ""
        return (
            f"{self.since.failed} of {self.since.count} failed, {self.retries} sent again; "
            f"p99 {before:.3g} ms before, {now:.3g} ms meanwhile{invalid}"
        )

    @property
    def begin(self) -> float:
        """Second from which on requests count as disturbed: the one in which something was done first."""
        return float(math.floor(self.events[0].second))

    @cached_property
    def quiet(self) -> Cell:
        """The requests before."""
        return self.run.recording.total(None, SETTLE_SECONDS, self.begin)

    @cached_property
    def end(self) -> float:
        """Second of the last event, or later for `least` requests: calm afterwards must not flatter the times."""
        recording, end = self.run.recording, math.ceil(self.events[-1].second)
        while recording.total(None, self.begin, end).count < self.least and end < self.run.seconds:
            end += 1
        return float(end)

    @cached_property
    def disturbed(self) -> Cell:
        """The requests from the first event to the last one: what response times are told of."""
        return self.run.recording.total(None, self.begin, self.end)

    @cached_property
    def since(self) -> Cell:
        """The requests from the first event to the end of the run: what failures are counted among."""
        return self.run.recording.total(None, self.begin)

    @property
    def p99_ratio(self) -> float:
        """Of the response times, disturbed over quiet."""
        return float(self.disturbed.response.percentile(99) / self.quiet.response.percentile(99))

    @property
    def failed_percent(self) -> float:
        """Of the requests since the first event."""
        return 100 * self.since.failed / self.since.count

    @property
    def disturbed_seconds(self) -> int:
        """Seconds in which a request failed, or whose p99 was above `ROLLING_P99` times the quiet one."""
        most = ROLLING_P99 * self.quiet.response.percentile(99)
        seconds = range(round(self.begin), math.ceil(self.run.seconds))
        cells = [self.run.recording.total(None, second, second + 1) for second in seconds]
        return sum(cell.failed > 0 or bool(cell.response.percentile(99) > most) for cell in cells)

    @property
    def invalid(self) -> str:
        """Why the figures do not count; empty when they do."""
        if not self.run.valid:
            return self.run.invalid
        if self.outlasted:
            return "the load was over before the replica was in service again; ask for more --requests"
        if not self.quiet.count or self.quiet.failed:
            return f"{self.quiet.failed} of {self.quiet.count} requests failed before anything was done"
        if self.since.count < self.least:
            return f"{self.since.count} requests, expected at least {self.least}"
        return ""

    def bars(self) -> list[Bar]:
        """What is asked."""
        failed, count = self.since.failed, self.since.count
        share = Bar(f"{self.title}: requests that failed, of {count}", "≤", FAILED_PERCENT, [self.failed_percent], "%")
        if self.name == "rolling":
            wrong = sum(status != 0 for status in self.course.exits)
            return [
                Bar(f"{self.title}: requests that failed, of {count}", "≤", 0, [failed], "requests"),
                Bar(f"{self.title}: p99 over its quiet value", "≤", ROLLING_P99, [self.p99_ratio], "×"),
                Bar(f"{self.title}: replicas that did not end with status 0", "≤", 0, [wrong], "replicas"),
            ]
        if self.name == "kill-replica":
            beyond = max(0, failed - sum(self.course.in_flight))
            what = f"{self.title}: failed beyond the {sum(self.course.in_flight)} in flight on it"
            return [share, Bar(what, "≤", 0, [beyond], "requests")]
        if self.name == "kill-worker":
            return [share, Bar(f"{self.title}: back after", "≤", BACK_SECONDS, self.course.back_seconds, "s")]
        return [share]

    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "title": self.title,
            "invalid": self.invalid,
            "rate": self.run.about["rate"],
            "quiet": _figures(self.quiet),
            "disturbed": _figures(self.disturbed),
            "since": _figures(self.since),
            "window": [self.begin, self.end],
            "disturbed_seconds": self.disturbed_seconds,
            "retries": self.retries,
            "course": asdict(self.course),
            "events": [asdict(event) for event in self.events],
            "bars": told(self.bars()),
        }


def told(bars: Iterable[Bar]) -> list[dict[str, Any]]:
    """Bars for JSON."""
    return [{"what": bar.what, "required": bar.required, "measured": bar.measured, "met": bar.met} for bar in bars]


def lines(findings: Iterable[Finding]) -> str:
    """A Markdown table of figures."""
    rows = []
    for found in findings:
        quiet, disturbed = found.quiet.response, found.disturbed.response
        times = [quiet.percentile(99), disturbed.percentile(99), disturbed.percentile(99.9), disturbed.max]
        rows.append(
            [
                found.title,
                str(found.since.count),
                str(found.since.failed),
                str(found.retries),
                *(f"{1000 * seconds:.3g}" for seconds in times),
                str(found.disturbed_seconds),
            ]
        )
    head = ["", "requests", "failed", "sent again", "p99 before, ms", "p99 meanwhile", "p99.9", "longest"]
    return table([*head, "disturbed s"], rows)


def _figures(cell: Cell) -> dict[str, Any]:
    times = {f"p{q:g}_ms": cell.response.percentile(q) for q in (50, 99, 99.9)} | {"max_ms": cell.response.max}
    known = {name: round(1000 * seconds, 2) if math.isfinite(seconds) else None for name, seconds in times.items()}
    return {"requests": cell.count, "failed": cell.failed, "errors": dict(cell.errors), **known}
