"""All figures of a bench run, and the medians and ratios made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

Cell = tuple[str, str]
"""A case and a server."""


@dataclass
class Measurements:
    """What is written to ``bench.json``.

    Args:
        machine: processor, cores, system, versions, date.
        options: connections, seconds, repeats.
        servers: by name: title, version, seconds to ready, or the error that kept it from running.
        cases: by name: payload, connections, what it is for.
        rows: one a repeat, case and server: ``repeat``, ``case``, ``server`` and the figures.
        in_process: one a repeat and model: ``repeat``, ``name`` and rows a second of onnxruntime alone.
        start_seconds: from ``make serve`` to ready, each time.
    """

    machine: dict[str, Any]
    options: dict[str, Any]
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    in_process: list[dict[str, Any]] = field(default_factory=list)
    start_seconds: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text("utf-8")))

    def write(self, path: Path) -> None:
        """Write as JSON, one line a row."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        lines = [f'"{name}": {_lines(part)}' for name, part in parts.items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")

    def each(self, cell: Cell, figure: str) -> dict[int, float]:
        """A figure of a case and a server, by repeat."""
        case, server = cell
        return {
            row["repeat"]: float(row[figure])
            for row in self.rows
            if row["case"] == case and row["server"] == server and row[figure] is not None
        }

    def limit(self, name: str, figure: str = "rows_per_second") -> dict[int, float]:
        """Rows a second of onnxruntime alone, by repeat."""
        return {row["repeat"]: float(row[figure]) for row in self.in_process if row["name"] == name}

    def median(self, cell: Cell, figure: str) -> float | None:
        """Over the repeats; None if it was not measured."""
        return middle(self.each(cell, figure).values())

    def ratios(self, cell: Cell, to: Cell, figure: str = "requests_per_second") -> list[float]:
        """One figure over another within each repeat that has both."""
        return compared(self.each(cell, figure), self.each(to, figure))

    def titles(self) -> dict[str, str]:
        """Servers' names in tables, with the version of the package they stand on."""
        return {name: told["title"] for name, told in self.servers.items()}


def middle(values: Iterable[float]) -> float | None:
    """The median, None of nothing."""
    return median(found) if (found := list(values)) else None


def compared(
    ours: dict[int, float],
    theirs: dict[int, float],
    how: Callable[[float, float], float] = lambda one, other: one / other,
) -> list[float]:
    """One against the other within each repeat that has both.

    A machine's other work comes and goes in minutes; two figures of one repeat are seconds apart.
    """
    return [how(ours[repeat], theirs[repeat]) for repeat in ours if theirs.get(repeat)]


def _lines(part: Any) -> str:  # noqa: ANN401 (whatever JSON can hold)
    """JSON with a line for each entry of the outermost list or object."""

    def entries() -> Iterator[str]:
        if isinstance(part, dict):
            yield from (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in part.items())
        else:
            yield from map(json.dumps, part)

    opening, closing = "{}" if isinstance(part, dict) else "[]"
    return f"{opening}\n  " + ",\n  ".join(entries()) + f"\n{closing}" if part else opening + closing
