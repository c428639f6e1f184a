"""How much two sets of figures differ, and how far chance alone could have moved them.

Intervals hold the true difference with `LEVEL`: of a hundred figures that do not differ, about one is said to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtests.record import WIDTH

Floats = NDArray[np.float64]
LEVEL = 0.99
RESOLUTION = math.log(WIDTH) * (1 + 1e-9)
"""Of the logarithm of a time, and a hair for rounding: two in neighbouring buckets may be as good as equal."""


@dataclass(frozen=True)
class Interval:
    """A difference, and what it may really be."""

    low: float
    estimate: float
    high: float

    @property
    def beyond_noise(self) -> bool:
        """Whether no difference at all lies outside."""
        return self.low > 0 or self.high < 0

    def widened(self, by: float) -> Interval:
        """With what the measurement could not resolve on both sides."""
        return Interval(self.low - by, self.estimate, self.high + by)


def between_repeats(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Mean of ``b`` less that of ``a``, by the spread between repeated measurements (Student, Biometrika 6, 1908).

    The spread is taken to be the same on both sides: with three repeats or so, neither alone would say much of it.

    Args:
        a: three or more; or two, but then only what is many times the spread stands out.
        b: likewise.
    """
    freedom = len(a) + len(b) - 2
    squares = sum(float(np.sum(np.square(np.subtract(side, np.mean(side))))) for side in (a, b))
    error = math.sqrt(squares / freedom * (1 / len(a) + 1 / len(b)))
    estimate = float(np.mean(b) - np.mean(a))
    reach = student_quantile((1 + LEVEL) / 2, freedom) * error
    return Interval(estimate - reach, estimate, estimate + reach)


def student_quantile(share: float, freedom: float) -> float:
    """The value that a variable with Student's distribution stays below in ``share`` of cases.

    Args:
        share: 0.5 to below 1.
        freedom: degrees of it, at least 1.
    """
    # With t = √freedom × tan θ the density becomes cos^(freedom − 1) θ: smooth and on a finite range.
    freedom = min(freedom, 1e4)
    theta = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(theta) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(2 * share - 1, area / area[-1], theta)))


def between_resamples(a: Floats, b: Floats) -> Interval:
    """The difference of two statistics by their bootstrap distributions (percentile interval, Efron 1979).

    Args:
        a: (1 + resamples,) the statistic as measured, then of each resample; nan where it had nothing to count.
        b: likewise, drawn independently.
    """
    differences = b - a
    known = differences[1:][np.isfinite(differences[1:])]
    if not known.size:
        return Interval(-math.inf, float(differences[0]), math.inf)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(differences[0]), float(high))


def resampled(length: int, resamples: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Seconds drawn with replacement in blocks, ends joined: the circular block bootstrap (Politis and Romano, 1992).

    What happens in one second goes on in the next, so seconds are drawn in runs of ∛length, not one by one.

    Args:
        length: seconds there are.
        resamples: how often to draw as many.

    Returns:
        (resamples, length) int64 how often each second was drawn.
    """
    block = max(1, round(length ** (1 / 3)))
    starts = random.integers(0, length, (resamples, -(-length // block)))
    drawn = ((starts[:, :, None] + np.arange(block)) % length).reshape(resamples, -1)[:, :length]
    flat = drawn + length * np.arange(resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=resamples * length).reshape(resamples, length)
