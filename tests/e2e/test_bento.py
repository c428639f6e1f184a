"""The Bento: built from the checkout, served from elsewhere, without TensorFlow."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from serving.manifest import MANIFEST_FILE, read_manifest
from tests.conftest import BENTOML, ROOT, running
from training import synthetic


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BentoML store with the Bento in it."""
    folder = tmp_path_factory.mktemp("bento") / "bentoml"
    folder.mkdir()
    environment = {**os.environ, "BENTOML_HOME": str(folder), "BENTOML_DO_NOT_TRACK": "True"}
    done = subprocess.run(
        [*BENTOML, "build", "--output", "tag"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def _sources(home: Path) -> Path:
    (source,) = (home / "bentos" / "sextant").glob("*/src")
    return source


def test_it_holds_what_serving_needs_and_no_more(home: Path) -> None:
    files = {path.relative_to(_sources(home)).as_posix() for path in _sources(home).rglob("*") if path.is_file()}
    assert "serving/service.py" in files
    for folder in (ROOT / "exported_models").glob("*/[1-9]*"):
        name = folder.relative_to(ROOT).as_posix()
        assert {f"{name}/{MANIFEST_FILE}", f"{name}/model.onnx", f"{name}/golden.npz"} <= files
    assert not [name for name in files if name.startswith(("training/", "tests/")) or "saved_model" in name]


def test_it_answers_from_outside_the_checkout_without_tensorflow(home: Path, tmp_path: Path) -> None:
    for module in ("tensorflow", "keras", "training"):  # found before any that is installed
        (tmp_path / f"{module}.py").write_text(f"raise ImportError('{module} must not be imported')")
    served = tmp_path / "elsewhere"
    served.mkdir()
    command = [*BENTOML, "serve", "sextant:latest"]
    environment = {"BENTOML_HOME": str(home), "PYTHONPATH": str(tmp_path)}
    with running(command, tmp_path / "log", folder=served, **environment) as server:
        models = server.get("/v1/models").json()["models"]
        committed = {folder.parent.name for folder in (ROOT / "exported_models").glob("*/[1-9]*")}
        assert {row["model"] for row in models if row["state"] == "AVAILABLE"} == committed
        pixels, _ = synthetic.digits(1, seed=0)
        answer = server.post("/v1/digit", pixels.tobytes(), "application/octet-stream").json()
    folder = ROOT / "exported_models" / "mnist_mlp" / str(answer["version"])
    assert answer["predictions"][0]["label"] in read_manifest(folder).labels
