"""Locust as it is run: processes of its own, because importing it changes the sockets and threads of whoever does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.record import Cell, Recording
from tests.conftest import ROOT

COMMAND = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--loglevel", "WARNING"]


@dataclass(frozen=True)
class Recorded:
    """What a run wrote."""

    told: dict[str, Any]

    @property
    def recording(self) -> Recording:
        return Recording.from_json(self.told["recording"])

    @property
    def total(self) -> Cell:
        return self.recording.total()

    @property
    def about(self) -> dict[str, Any]:
        return self.told["about"]

    @property
    def whole(self) -> bool:
        """Whether everything was sent and recorded; how punctually depends on what else the machine does."""
        return not self.told["invalid"] or self.told["invalid"].startswith("the generator did not keep up")

    def seconds(self) -> list[int]:
        """Requests that were due in each second of the run."""
        recording = self.recording
        return [recording.total(None, second, second + 1).count for second in range(int(self.about["seconds"]))]


def environment() -> dict[str, str]:
    """That of the tests without real data, so that payloads are drawn."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SEXTANT_", "LOCUST_"))}


def locust(*options: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run Locust to its end."""
    command = [*COMMAND, "--headless", "--only-summary", *options]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=timeout
    )


def record(folder: Path, url: str, seconds: float, *options: str, shape: str = "steady") -> Recorded:
    """Run Locust for so long and read what it recorded."""
    file = folder / "run.json"
    length: Sequence[str] = ["--shape", shape, "--minutes", str(seconds / 60)]
    done = locust("--host", url, *length, "--record", str(file), *options)
    assert file.is_file(), done.stdout + done.stderr
    return Recorded(json.loads(file.read_text()))
