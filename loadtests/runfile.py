"""A load test that was recorded: ``run.json`` of its folder, typed.

``server`` holds one sample a second. Its ``metrics`` are those of the service's ``/metrics`` by their names there, each
with the values of its labels joined by spaces: ``{"sextant_batch_rows_sum": {"mnist_mlp": 812.0}, …}``. The report
reads ``sextant_batch_rows`` and ``sextant_queue_seconds`` (``_sum`` and ``_count``, by model); what is not there is not
drawn, so that runs against other servers can be read too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from loadtests.record import Recording

FILE = "run.json"


class RunError(ValueError):
    """A file is not the record of a load test."""


@dataclass(frozen=True)
class Stage:
    """What the shape asked for during some seconds of the run, from ``start`` to before ``end``.

    Args:
        rate: requests a second; None in the closed loop.
        users: simulated users; None in the open loop.
    """

    start: float
    end: float
    rate: float | None
    users: int | None


@dataclass(frozen=True)
class Sample:
    """The server at one moment.

    Args:
        t: seconds since the start of the run.
        resident_mb: of each of its processes, by id; empty when the server is not ours to look into.
        metrics: totals since the server started, by name and label values.
    """

    t: float
    resident_mb: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Run:
    """One load test.

    Args:
        about: how it was run: shape, loop, rate, seconds, machine, versions …
        invalid: why its figures do not count; empty when they do.
        stages: in order.
        server: in order of time.
    """

    about: Mapping[str, Any]
    invalid: str
    stages: tuple[Stage, ...]
    recording: Recording
    server: tuple[Sample, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether the generator kept up, so that the figures are the server's."""
        return not self.invalid

    @property
    def open_loop(self) -> bool:
        """Whether requests came by the clock."""
        return bool(self.about.get("loop", "open") == "open")

    @property
    def seconds(self) -> float:
        """Length of the run."""
        return float(self.about["seconds"])

    @property
    def routes(self) -> list[str]:
        """Those asked for and those recorded, sorted: one without a single answer is still one of the run's."""
        asked = (route for route, weight in (self.about.get("weights") or {}).items() if weight)
        return sorted({*asked, *self.recording.routes()})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a run.

        Args:
            path: of ``run.json`` or of its folder.

        Raises:
            RunError: it cannot be read, or is something else.
        """
        file = path / FILE if path.is_dir() else path
        try:
            return cls.from_json(json.loads(file.read_text("utf-8")))
        except OSError as error:
            raise RunError(f"{file}: {error.strerror or error}; expected the {FILE} of a load test") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            told = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise RunError(f"{file}: not the {FILE} of a load test: {told}") from error

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """What the file tells.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: it is something else.
        """
        about, seconds = told["about"], float(told["about"]["seconds"])
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"expected a length above 0 s, received {seconds:g}")
        return cls(
            about=about,
            invalid="" if told["valid"] else told["invalid"] or "no reason was given",
            stages=tuple(
                Stage(stage["start"], stage["end"], stage.get("rate"), stage.get("users")) for stage in told["stages"]
            ),
            recording=Recording.from_json(told["recording"]),
            server=tuple(
                Sample(sample["t"], sample.get("resident_mb") or {}, sample.get("metrics") or {})
                for sample in told.get("server") or ()
            ),
        )
