"""One smoke run of the whole model line, shared by every test of what it published."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_LIMIT_SECONDS = 1500


@dataclass(frozen=True)
class SmokeRun:
    """What ``python -m training all --smoke`` printed, and the model repository it filled."""

    repository: Path
    output: str
    errors: str


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """Every architecture trained on synthetic data, as a user would: from the command line."""
    repository = tmp_path_factory.mktemp("smoke") / "exported_models"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SEXTANT_")}
    done = subprocess.run(
        [sys.executable, "-m", "training", "all", "--smoke", "--output", str(repository)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return SmokeRun(repository, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def smoke_repository(smoke_run: SmokeRun) -> Path:
    """The model repository that the smoke run published."""
    return smoke_run.repository
