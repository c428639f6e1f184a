"""The README's commands, run as they stand there, against the service as `make serve` starts it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.settings import Settings
from tests.conftest import ROOT, Server, running

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def _examples() -> list[tuple[str, str | None]]:
    """Each block of curl commands, with the JSON that follows it, if any does."""
    following = [*BLOCKS[1:], ("", "")]
    return [
        (block, answer if kind == "json" else None)
        for (language, block), (kind, answer) in zip(BLOCKS, following, strict=True)
        if language == "sh" and "curl" in block
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`make serve` on a free port."""
    with running(["make", "serve"], tmp_path_factory.mktemp("make-serve") / "log") as started:
        yield started


def test_every_route_has_an_example() -> None:
    told = "".join(block for block, _ in _examples())
    routes = ("digit", "image", "sentiment", "gan/sample", "vae/sample", "vae/reconstruct", "vae/anomaly")
    assert [route for route in routes if f"/v1/{route}" not in told] == []


def test_every_example_answers_as_the_readme_says(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for block, answer in _examples():
        output = ""
        for command in block.replace("http://127.0.0.1:3000", server.url).splitlines():
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, (command, done.stderr)
            output = done.stdout
        if answer is not None:
            _agree(json.loads(output), json.loads(answer), block)
    for name in ("seven.png", "hundred.png", "pair.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG"), name


def _agree(found: object, told: object, where: str) -> None:
    """Same structure and words; numbers to three places, and a text that ends in "…" is cut off there."""
    if isinstance(told, dict):
        assert isinstance(found, dict), where
        assert found.keys() == told.keys(), where
        for key, value in told.items():
            _agree(found[key], value, f"{where}: {key}")
    elif isinstance(told, list):
        assert isinstance(found, list), where
        assert len(found) == len(told), where
        for one, other in zip(found, told, strict=True):
            _agree(one, other, where)
    elif isinstance(told, float):
        assert found == pytest.approx(told, abs=1e-3, rel=1e-3), where
    elif isinstance(told, str) and told.endswith("…"):
        assert str(found).startswith(told[:-1]), where
    else:
        assert found == told, where


def test_every_setting_is_told_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `SEXTANT_(\w+)` \| (.*?) \|", README, re.MULTILINE))
    assert {name.lower() for name in rows} == set(Settings.model_fields)
    defaults = Settings()
    for name in ("deadline_seconds", "max_rows", "max_samples", "max_body_bytes", "max_queue_rows", "host", "port"):
        assert rows[name.upper()] == f"`{getattr(defaults, name)}`", name


def test_the_architecture_of_the_walk_through_trains_and_is_published(tmp_path: Path) -> None:
    """The ten lines of "Add an architecture", put where they belong in a copy of the tree."""
    (code,) = [block for language, block in BLOCKS if language == "python"]
    for package in ("training", "serving"):
        subprocess.run(["cp", "-r", ROOT / package, tmp_path / package], check=True)
    (tmp_path / "training" / "architectures" / "mnist_wide.py").write_text(code, "utf-8")
    (command,) = re.findall(r"`.venv/bin/python (-m training mnist_wide --smoke)`", README)
    subprocess.run(
        [sys.executable, *command.split(), "--output", tmp_path / "models"], cwd=tmp_path, check=True, timeout=300
    )
    assert (tmp_path / "models" / "mnist_wide" / "1" / "model.onnx").is_file()
