"""How load goes up and down in the course of a run, and when requests are due: pure functions of time.

A shape says of each second how many times the asked rate, or the asked number of users, there shall be. It is made of
stages of constant load, because only those can be held against what was served.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.clock import Arrivals
from loadtests.record import Recording

STEP_SECONDS: Final = 10.0
STEP_GROWTH: Final = 1.2
SPIKE_SECONDS: Final = 5.0
SPIKE_FACTOR: Final = 10.0
KEPT_UP: Final = 0.8
"""Share of a step's requests that a service must have answered for the next one to make sense."""
RISES: Final = 1.05
"""How much more must be served by the users of two steps more for the next step to make sense."""


@dataclass(frozen=True)
class Stage:
    """Constant load from ``start`` to before ``end``, in seconds: ``factor`` times what was asked for."""

    start: float
    end: float
    factor: float


@dataclass(frozen=True)
class Shape:
    """A course of the load.

    Attributes:
        what: it is for, in a few words.
        seconds: it lasts unless said otherwise.
        least: seconds that it takes to make sense.
        course: the stages of a run of so many seconds.
    """

    what: str
    seconds: float
    least: float
    course: Callable[[float], tuple[Stage, ...]]


def _constant(seconds: float) -> tuple[Stage, ...]:
    return (Stage(0.0, seconds, 1.0),)


def _steps(seconds: float) -> tuple[Stage, ...]:
    count = max(1, math.ceil(seconds / STEP_SECONDS - 1e-9))
    edges = [min(step * STEP_SECONDS, seconds) for step in range(count + 1)]
    return tuple(Stage(start, end, STEP_GROWTH**step) for step, (start, end) in enumerate(itertools.pairwise(edges)))


def _spike(seconds: float) -> tuple[Stage, ...]:
    start = (seconds - SPIKE_SECONDS) / 2
    end = start + SPIKE_SECONDS
    return Stage(0.0, start, 1.0), Stage(start, end, SPIKE_FACTOR), Stage(end, seconds, 1.0)


SHAPES: Final[Mapping[str, Shape]] = {
    "smoke": Shape("a short look whether all is well", 20.0, 1.0, _constant),
    "steady": Shape("figures at one rate", 60.0, 1.0, _constant),
    "steps": Shape("rises by a fifth every 10 s until the service no longer follows", 180.0, 1.0, _steps),
    "spike": Shape("ten times as much for 5 s in the middle", 45.0, 15.0, _spike),
    "soak": Shape("hours at one rate, for what drifts", 1800.0, 1.0, _constant),
}


def stages(shape: str, seconds: float | None = None) -> tuple[Stage, ...]:
    """The stages of a shape, one after another from 0.

    Args:
        shape: of `SHAPES`.
        seconds: the run lasts; the shape's own time unless given.

    Raises:
        ValueError: there is no such shape, or the time is too short for it.
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(SHAPES)}")
    chosen = SHAPES[shape]
    seconds = chosen.seconds if seconds is None else seconds
    if not chosen.least <= seconds < math.inf:
        raise ValueError(f"shape {shape} takes at least {chosen.least:g} s; received {seconds:g} s")
    return chosen.course(seconds)


def factor(course: Sequence[Stage], second: float) -> float:
    """How many times what was asked for there is at ``second``; 0 before and after the run."""
    return next((stage.factor for stage in course if stage.start <= second < stage.end), 0.0)


def users(course: Sequence[Stage], second: float, asked: int) -> int:
    """Simulated users at ``second``, at least one; 0 before and after the run."""
    share = factor(course, second)
    return max(1, round(share * asked)) if share else 0


def arrivals(
    course: Sequence[Stage], rate: float, kind: Arrivals = "constant", *, seed: int = 0, index: int = 0, count: int = 1
) -> Iterator[float]:
    """When one of ``count`` processes sends its requests, in seconds from the start, ascending.

    Constant arrivals are those of the whole run dealt out in turn, so that all processes' together are evenly spaced;
    Poisson arrivals are processes of ``rate / count`` each, which add up to one of ``rate``.

    Args:
        rate: requests a second of all processes together at a factor of 1.
        kind: evenly spaced, or a Poisson process (independent users).
        seed: of the Poisson process.
        index: of the process, from 0.
    """
    if kind == "poisson":
        # Not hash(): the same seed shall give the same run in every interpreter.
        yield from _poisson(course, rate / count, random.Random(f"{seed} {index} {count}"))  # noqa: S311 - arrivals
        return
    sent = 0
    for stage in course:
        own = rate * stage.factor
        total = math.ceil((stage.end - stage.start) * own - 1e-9)
        for step in range((index - sent) % count, total, count):
            yield stage.start + step / own
        sent += total


def _poisson(course: Sequence[Stage], rate: float, rng: random.Random) -> Iterator[float]:
    for stage in course:  # a Poisson process has no memory: each stage may begin its own
        due = stage.start + rng.expovariate(rate * stage.factor)
        while due < stage.end:
            yield due
            due += rng.expovariate(rate * stage.factor)


def past_the_knee(recording: Recording, course: Sequence[Stage], second: float, rate: float | None) -> bool:
    """Whether a run of steps may end, because the service no longer follows.

    In the open loop (``rate`` given) when less than `KEPT_UP` of a step's requests were answered well; in the closed
    loop when two steps, 44 % more users, have not brought `RISES` times as many answers.

    Args:
        recording: so far.
        second: of the run; a step is judged 4 s after its end, when all processes have reported.
    """
    over = [stage for stage in course if stage.end <= second - 4.0]

    def served(stage: Stage) -> float:
        return recording.answered(stage.start, stage.end) / (stage.end - stage.start)

    if rate is not None:
        return bool(over) and served(over[-1]) < KEPT_UP * rate * over[-1].factor
    return len(over) > 2 and served(over[-1]) < RISES * served(over[-3])
