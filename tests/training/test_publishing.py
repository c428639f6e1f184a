"""A version appears whole or not at all, and never changes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.tiny import names_below
from training.publishing import publish, published_versions, staging

ROOT = Path(__file__).resolve().parents[2]
KILLED_BEFORE_THE_RENAME = """
import os, signal, sys
from pathlib import Path
from training.publishing import publish, staging

Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
repository = Path(sys.argv[1])
with staging(repository) as folder:
    (folder / "model.onnx").write_text("whole")
    publish(folder, repository, "digit", 1)
"""


def write(repository: Path, version: int, content: str = "whole") -> Path:
    with staging(repository) as folder:
        (folder / "variables").mkdir()
        (folder / "variables" / "data").write_text(content)
        (folder / "model.onnx").write_text(content)
        return publish(folder, repository, "digit", version)


def test_a_published_folder_holds_what_was_staged(tmp_path: Path):
    folder = write(tmp_path / "new", 1)
    assert folder == tmp_path / "new" / "digit" / "1"
    assert names_below(folder) == ["model.onnx", "variables"]
    assert names_below(tmp_path / "new") == ["digit"]


def test_staging_is_on_the_same_file_system_and_hidden(tmp_path: Path):
    with staging(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.name.startswith(".")


def test_an_exception_midway_leaves_nothing(tmp_path: Path):
    def interrupted() -> None:
        with staging(tmp_path) as folder:
            (folder / "model.onnx").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names_below(tmp_path) == []


def test_a_kill_midway_leaves_no_version(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_RENAME, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert published_versions(tmp_path, "digit") == []
    assert write(tmp_path, 1).name == "1"


def test_a_published_version_is_never_overwritten(tmp_path: Path):
    first = write(tmp_path, 1)
    with pytest.raises(FileExistsError, match="is published already"):
        write(tmp_path, 1, "other")
    assert (first / "model.onnx").read_text() == "whole"
    assert names_below(tmp_path) == ["digit"]


def test_versions_are_counted_as_numbers(tmp_path: Path):
    for version in (10, 9, 1):
        write(tmp_path, version)
    (tmp_path / "digit" / "notes").mkdir()
    assert published_versions(tmp_path, "digit") == [1, 9, 10]
    assert published_versions(tmp_path, "unknown") == []
