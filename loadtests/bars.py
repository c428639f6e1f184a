"""What the service must reach, held against what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loadtests.measurements import Measurements, compared, middle

LATENCY_CASE = "digit-raw, one connection"
MANY_CASE = "image-png, 64 connections"
METRICS_CASE = "digit-raw, metrics on and off"
WORKERS_CASES = {name: f"{name}, one worker and two" for name in ("digit-raw", "image-png", "sentiment-230")}


@dataclass(frozen=True)
class Bar:
    """One requirement.

    Args:
        what: is asked.
        least_or_most: which way ``limit`` bounds it.
        limit: the bound.
        each: what every repeat measured; empty if none did.
        unit: of both; ``×`` for a ratio.
    """

    what: str
    least_or_most: Literal["≥", "≤"]
    limit: float
    each: Sequence[float]
    unit: str

    @property
    def measured(self) -> float | None:
        """The median of the repeats."""
        return middle(self.each)

    @property
    def met(self) -> bool | None:
        """Whether it is; None if it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.least_or_most == "≥" else self.measured <= self.limit

    @property
    def verdict(self) -> str:
        """Of `met`, in words."""
        return {True: "met", False: "NOT met", None: "not measured"}[self.met]

    @property
    def required(self) -> str:
        """The bound in words."""
        return f"{self.least_or_most} {self.limit:g} {self.unit}"

    @property
    def figure(self) -> str:
        """What was measured, in words: the median, and from where to where the repeats went."""
        if self.measured is None:
            return "–"
        spread = f" ({min(self.each):.3g} … {max(self.each):.3g})" if len(self.each) > 1 else ""
        return f"{self.measured:.3g} {self.unit}{spread}"


def bars(found: Measurements) -> list[Bar]:
    """Every bar of a bench run."""
    return [
        *_against_peers(found),
        *_against_the_limit(found),
        *_against_ourselves(found),
    ]


def _against_peers(found: Measurements) -> list[Bar]:
    asked = [
        ("digit-raw", "bare-asgi", 0.75),
        ("digit-raw", "fastapi", 1.6),
        ("digit-raw", "bentoml-typed", 15),
        ("digit-json", "bare-asgi", 0.80),
        ("digit-json", "fastapi", 1.6),
        ("digit-json", "bentoml-typed", 10),
        ("digit-png", "fastapi", 1.5),
        ("image-png", "fastapi", 1.5),
        ("sentiment-230", "fastapi-plain-graph", 15),
    ]
    return [
        Bar(
            f"{case}, requests/s over {found.titles().get(peer, peer)}",
            "≥",
            limit,
            found.ratios((case, "sextant"), (case, peer)),
            "×",
        )
        for case, peer, limit in asked
    ]


def _against_the_limit(found: Measurements) -> list[Bar]:
    rate = "requests_per_second"
    one = compared(found.each(("sentiment-230", "sextant"), rate), found.limit("sentiment-230"))
    many = compared(found.each((MANY_CASE, "sextant"), rate), found.limit("image", "best_rows_per_second"))
    added = compared(
        found.each((LATENCY_CASE, "sextant"), "p50_ms"),
        found.each((LATENCY_CASE, "bare-asgi"), "p50_ms"),
        lambda ours, theirs: ours - theirs,
    )
    return [
        Bar("sentiment-230, requests/s over onnxruntime's rows/s alone, batch of one", "≥", 0.85, one, "×"),
        Bar(f"{MANY_CASE}, requests/s over onnxruntime's rows/s alone, best batch", "≥", 0.6, many, "×"),
        Bar(f"{LATENCY_CASE}, p50 over bare ASGI's", "≤", 0.15, added, "ms"),
    ]


def _against_ourselves(found: Measurements) -> list[Bar]:
    workers = [
        Bar(f"{name}, two workers over one, both cores", "≥", 1.0, found.ratios((case, "two"), (case, "one")), "×")
        for name, case in WORKERS_CASES.items()
    ]
    metrics = found.ratios((METRICS_CASE, "sextant"), (METRICS_CASE, "no-metrics"))
    resident = [row["worker_mb"] for row in found.rows if row["server"] == "sextant"]
    failed = [row["failed"] for row in found.rows if row["server"] == "sextant"]
    return [
        *workers,
        Bar("digit-raw, requests/s with metrics over without", "≥", 0.93, metrics, "×"),
        Bar(
            "resident memory of a worker, all models loaded, at most",
            "≤",
            260,
            [max(resident)] if resident else [],
            "MB",
        ),
        Bar("`make serve` (installed) to ready", "≤", 6, found.start_seconds, "s"),
        Bar("requests that failed, of all sent", "≤", 0, [sum(failed)] if failed else [], "requests"),
    ]
