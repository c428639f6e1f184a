"""Runs made by hand for the tests of verdict, report and comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loadtests.record import Recording
from loadtests.runfile import Run, Sample, Stage

Draw = Callable[[np.random.Generator, float], tuple[float, str | None]]
"""(random generator, second at which a request is due) → seconds to its answer, and its error."""


def lognormal(median: float, sigma: float = 0.3, errors: float = 0.0) -> Draw:
    """Times as services have them: many short, some long; a share of them refused."""

    def draw(random: np.random.Generator, due: float) -> tuple[float, str | None]:
        return median * float(random.lognormal(0, sigma)), "429" if random.random() < errors else None

    return draw


def run(
    routes: Mapping[str, Draw],
    stages: list[tuple[float, float]] | None = None,
    *,
    seed: int = 1,
    invalid: str = "",
    server: tuple[Sample, ...] = (),
    **about: object,
) -> Run:
    """A run at constant arrivals.

    Args:
        routes: each gets its requests in turn.
        stages: rate and seconds; one of 100/s for 10 s by default.
        about: over what the machine would have told.
    """
    random, recording, start, asked = np.random.default_rng(seed), Recording(), 0.0, []
    names, number = list(routes), 0
    for rate, seconds in stages or [(100.0, 10.0)]:
        for due in start + np.arange(round(rate * seconds)) / rate:
            name = names[number % len(names)]
            wait, error = routes[name](random, due)
            recording.add(name, due, due + 2e-4, due + 2e-4 + wait, error)
            number += 1
        asked.append(Stage(start, start + seconds, rate, None))
        start += seconds
    told = {
        "shape": "steady",
        "loop": "open",
        "arrivals": "constant",
        "rate": asked[0].rate,
        "users": None,
        "seconds": start,
        "host": "http://127.0.0.1:3000",
        "started": "2024-05-01T12:00:00+00:00",
        "machine": {"processor": "a <quick> one", "cores": 2, "system": "Linux"},
        "versions": {"locust": "2.47.0", "python": "3.11.2"},
        "seed": seed,
        "processes": 1,
        "weights": dict.fromkeys(names, 1),
    }
    return Run(told | about, invalid, tuple(asked), recording, server)


def told(run: Run) -> dict[str, Any]:
    """As ``run.json`` holds it."""
    return {
        "about": dict(run.about),
        "valid": run.valid,
        "invalid": run.invalid,
        "stages": [vars(stage) for stage in run.stages],
        "recording": run.recording.to_json(),
        "server": [vars(sample) for sample in run.server],
    }
