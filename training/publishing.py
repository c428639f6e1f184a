"""The model repository's writing side: a version appears whole and checked, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def published_versions(repository: Path, model: str) -> list[int]:
    """The versions of a model that are there, ascending."""
    folder = repository / model
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal()) if folder.is_dir() else []


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A folder beside the models, on the same file system, gone afterwards unless it was published from."""
    repository.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".staging-", dir=repository))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, repository: Path, model: str, version: int) -> Path:
    """Move a finished folder to ``repository/model/version`` in one step, after its bytes are on disk.

    Raises:
        FileExistsError: that version is there already; a published version never changes.
    """
    target = repository / model / str(version)
    if target.exists():
        message = f"{target} is published already"
        raise FileExistsError(message)
    target.parent.mkdir(exist_ok=True)
    for path in (*staged.rglob("*"), staged):
        path.chmod(0o755 if path.is_dir() else 0o644)  # the staging folder is private
        _sync(path)
    staged.rename(target)
    _sync(target.parent)
    return target


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
