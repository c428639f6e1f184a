"""What a run found, a second at a time: histograms of times, and errors by reason, by route.

A request is entered when it is over, under the second in which it was due; recordings of several processes add up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

SHORTEST: Final = 1e-5
"""Seconds; shorter times share the first bucket."""
LONGEST: Final = 1e3
"""Seconds; longer times share the last bucket."""
WIDTH: Final = 1.01
"""Upper edge of a bucket over its lower one."""
_PER_BUCKET: Final = 1 / math.log(WIDTH)
BUCKETS: Final = 2 + math.ceil(math.log(LONGEST / SHORTEST) * _PER_BUCKET)


def upper_edges() -> NDArray[np.float64]:
    """(BUCKETS,) the longest time in seconds that belongs into each bucket; the last one has no end."""
    edges: NDArray[np.float64] = SHORTEST * WIDTH ** np.arange(BUCKETS, dtype=np.float64)
    edges[-1] = np.inf
    return edges


class Histogram:
    """Times in buckets that are 1 % wide from 10 µs to 1000 s, so that percentiles are within 1 % at any length.

    The idea, and the way percentiles are counted, are HdrHistogram's (Tene, hdrhistogram.org). Only buckets that
    hold something take memory: a run of half an hour has tens of thousands of histograms.
    """

    __slots__ = ("_counts", "_max", "_sum", "count")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._sum = 0.0
        self._max = 0.0
        self.count = 0

    def add(self, seconds: float) -> None:
        """Enter one time; what is negative counts as 0.

        Raises:
            ValueError: it is not a number.
        """
        if seconds > SHORTEST:
            bucket = min(1 + int(math.log(seconds / SHORTEST) * _PER_BUCKET), BUCKETS - 1)
        elif seconds <= SHORTEST:
            bucket, seconds = 0, max(seconds, 0.0)
        else:
            raise ValueError(f"expected seconds, received {seconds}")
        counts = self._counts
        counts[bucket] = counts.get(bucket, 0) + 1
        self.count += 1
        self._sum += seconds
        self._max = max(self._max, seconds)

    def merge(self, other: Histogram) -> None:
        """Enter all that ``other`` holds."""
        counts = self._counts
        for bucket, count in other._counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        self.count += other.count
        self._sum += other._sum
        self._max = max(self._max, other._max)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(BUCKETS,) int64 times in each bucket, see `upper_edges`."""
        counts = np.zeros(BUCKETS, np.int64)
        counts[list(self._counts)] = list(self._counts.values())
        return counts

    @property
    def mean(self) -> float:
        """Seconds, exact; nan when empty."""
        return self._sum / self.count if self.count else math.nan

    @property
    def max(self) -> float:
        """Seconds, exact; nan when empty."""
        return self._max if self.count else math.nan

    def percentile(self, q: float) -> float:
        """Seconds that ``q`` of 100 times do not exceed, at most 1 % too many; nan when empty.

        Raises:
            ValueError: ``q`` is not from 0 to 100.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"expected a percentile from 0 to 100, received {q}")
        if not self.count:
            return math.nan
        # A hair less, so that 99.9 % of 1000, which binary fractions make a little more than 999, are 999.
        rank = max(1, math.ceil(math.nextafter(q, 0.0) * self.count / 100))
        reached = 0
        for bucket in sorted(self._counts):
            reached += self._counts[bucket]
            if reached >= rank:
                return self._max if reached == self.count else min(SHORTEST * WIDTH**bucket, self._max)
        raise AssertionError("the buckets hold fewer times than were counted")

    def to_json(self) -> dict[str, Any]:
        """The buckets that hold something, for `from_json`."""
        buckets = sorted(self._counts)
        counts = [self._counts[bucket] for bucket in buckets]
        return {"buckets": buckets, "counts": counts, "sum": self._sum, "max": self._max}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """What `to_json` told of."""
        histogram = cls()
        histogram._counts = dict(zip(told["buckets"], told["counts"], strict=True))
        histogram.count = sum(told["counts"])
        histogram._sum, histogram._max = told["sum"], told["max"]
        return histogram


class Cell:
    """One route in one second, by due time; or, added up, any number of them.

    Attributes:
        response: done − due: what a user waits.
        service: done − sent: what the server and its line took.
        late: sent − due: the generator's own error; 0 in the closed loop, which sends when it can.
        ok: requests answered as they should be.
        errors: the others by reason. Their times are in the histograms as far as somebody waited them.
    """

    __slots__ = ("errors", "late", "ok", "response", "service")

    def __init__(self) -> None:
        self.response, self.service, self.late = Histogram(), Histogram(), Histogram()
        self.ok = 0
        self.errors: Counter[str] = Counter()

    @property
    def failed(self) -> int:
        """Requests that were not answered as they should be."""
        return self.errors.total()

    @property
    def count(self) -> int:
        """All requests."""
        return self.ok + self.failed

    def merge(self, other: Cell) -> None:
        """Enter all that ``other`` holds."""
        self.response.merge(other.response)
        self.service.merge(other.service)
        self.late.merge(other.late)
        self.ok += other.ok
        self.errors.update(other.errors)

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        times = {name: getattr(self, name).to_json() for name in ("response", "service", "late")}
        return {**times, "ok": self.ok, "errors": dict(self.errors)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """What `to_json` told of."""
        cell = cls()
        cell.response, cell.service, cell.late = (
            Histogram.from_json(told[name]) for name in ("response", "service", "late")
        )
        cell.ok, cell.errors = told["ok"], Counter(told["errors"])
        return cell


class Recording:
    """Cells by route and second."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[int, Cell]] = {}

    def add(self, route: str, due: float, sent: float, done: float, error: str | None, *, waited: bool = True) -> None:
        """Enter one request.

        Args:
            route: name of the user's task.
            due: seconds from the start of the run at which it should have been sent.
            sent: at which it was.
            done: at which the answer was whole or given up.
            error: why it does not count as answered; None if it does.
            waited: whether somebody waited until ``done``: for an answer, or as long as answers may take. False for a
                connection that was refused or broke; how soon that happened says nothing of the server's speed.
        """
        cell = self._cell(route, math.floor(due))
        cell.late.add(sent - due)
        if waited:
            cell.response.add(done - due)
            cell.service.add(done - sent)
        if error is None:
            cell.ok += 1
        else:
            cell.errors[error] += 1

    def merge(self, other: Recording) -> None:
        """Enter all that ``other`` holds."""
        for route, cells in other._cells.items():
            for second, cell in cells.items():
                self._cell(route, second).merge(cell)

    def routes(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._cells)

    def seconds(self) -> range:
        """From the first second with a request to the last one; empty when there is none."""
        seconds = [second for cells in self._cells.values() for second in cells]
        return range(min(seconds), max(seconds) + 1) if seconds else range(0)

    def total(self, route: str | None = None, start: float = 0.0, end: float = math.inf) -> Cell:
        """A new cell with all that was due in the seconds from ``start`` to before ``end``; of every route for None."""
        total = Cell()
        for name in self._cells if route is None else (route,):
            for cell in _between(self._cells.get(name, {}), start, end):
                total.merge(cell)
        return total

    def answered(self, start: float = 0.0, end: float = math.inf) -> int:
        """How many requests that were due in these seconds were answered as they should be; cheap, unlike `total`."""
        return sum(cell.ok for cells in self._cells.values() for cell in _between(cells, start, end))

    def to_json(self) -> dict[str, Any]:
        """Cells by route and second, without the empty ones."""
        return {
            route: {str(second): cell.to_json() for second, cell in sorted(cells.items())}
            for route, cells in sorted(self._cells.items())
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """What `to_json` told of."""
        recording = cls()
        for route, cells in told.items():
            recording._cells[route] = {int(second): Cell.from_json(cell) for second, cell in cells.items()}
        return recording

    def _cell(self, route: str, second: int) -> Cell:
        cells = self._cells.get(route)
        if cells is None:
            cells = self._cells[route] = {}
        cell = cells.get(second)
        if cell is None:
            cell = cells[second] = Cell()
        return cell


def _between(cells: Mapping[int, Cell], start: float, end: float) -> Iterator[Cell]:
    """The cells of the seconds from ``start`` to before ``end``."""
    if end - start < len(cells):  # one second of half an hour is looked up, not searched for
        wanted = (cells.get(second) for second in range(math.ceil(start), math.ceil(end)))
        yield from (cell for cell in wanted if cell is not None)
    else:
        yield from (cell for second, cell in cells.items() if start <= second < end)
