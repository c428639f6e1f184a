import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from prometheus_client import CollectorRegistry

from serving.errors import NotFoundError, UnavailableError
from serving.manifest import file_digests
from serving.metrics import Metrics
from serving.repository import Record, Repository, load_repository
from serving.session import _PROVIDERS, _load_cuda_libraries
from serving.settings import Settings
from tests.models import digit_model, image_model, sentiment_model


def load(root: Path | str, **settings: object) -> Repository:
    return load_repository(Settings(models_dir=root, **settings), Metrics(CollectorRegistry()))


def records(repository: Repository) -> dict[tuple[str, int], Record]:
    return {(record.model, record.version): record for record in repository.records}


def edit_manifest(folder: Path, change: Callable[[dict], None], *, rehash: bool = True) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    if rehash:
        manifest["files"] = file_digests(folder)
    change(manifest)
    path.write_text(json.dumps(manifest))


def rehash(folder: Path) -> None:
    edit_manifest(folder, lambda _: None)


def test_the_highest_version_is_served(tmp_path: Path):
    for version in (2, 10, 9):
        digit_model(tmp_path, version=version, seed=version)
    repository = load(tmp_path)
    assert repository.predictors["mnist_mlp"].manifest.version == 10
    assert repository.ready


def test_of_a_broken_highest_version_the_next_lower_serves_and_both_are_told(tmp_path: Path):
    digit_model(tmp_path, version=1)
    (digit_model(tmp_path, version=2) / "model.onnx").write_bytes(b"no graph")
    repository = load(tmp_path)
    found = records(repository)
    assert repository.predictors["mnist_mlp"].manifest.version == 1
    assert found["mnist_mlp", 1].state == "AVAILABLE"
    assert found["mnist_mlp", 2].state == "UNAVAILABLE"
    assert "model.onnx has sha256" in found["mnist_mlp", 2].reason


def test_of_several_repositories_the_first_that_has_a_model_gives_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    mounted, own, absent = (tmp_path / name for name in ("mounted", "own", "absent"))
    digit_model(mounted, version=1)
    digit_model(own, version=2)
    image_model(own)
    both = f"{absent}{os.pathsep}{mounted}{os.pathsep}{own}"
    served = {name: one.manifest.version for name, one in load(both).predictors.items()}
    assert served == {"mnist_mlp": 1, "cifar10_cnn": 1}
    assert load(both, models="cifar10_cnn").predictors.keys() == {"cifar10_cnn"}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert not load(absent).ready
    assert f"models_dir {absent} cannot be read: No such file or directory" in caplog.text


@pytest.mark.parametrize(("device", "reason"), [("auto", ""), ("cuda", "onnxruntime cannot use it: is there a GPU")])
def test_where_cuda_cannot_be_used_only_those_who_asked_for_it_are_told(
    device: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As with onnxruntime-gpu on a machine without a GPU: it falls back to the CPU, and warns."""
    loaded: list[bool] = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(_PROVIDERS["cuda"]))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append(True))
    _load_cuda_libraries.cache_clear()
    digit_model(tmp_path)
    image_model(tmp_path)
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        repository = load(tmp_path, device=device)
    assert loaded == [True], "once a process"
    assert repository.ready == (device == "auto")
    assert all(reason in record.reason for record in repository.records)


def change_golden(folder: Path) -> None:
    with np.load(folder / "golden.npz") as golden:
        arrays = dict(golden)
    arrays["outputs/probabilities"] = arrays["outputs/probabilities"] + 0.01
    np.savez(folder / "golden.npz", **arrays)
    rehash(folder)


def drop_golden_output(folder: Path) -> None:
    with np.load(folder / "golden.npz") as golden:
        np.savez(folder / "golden.npz", **{"inputs/pixels": golden["inputs/pixels"]})
    rehash(folder)


def unreadable_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\x00" * 100)
    rehash(folder)


def unreadable_golden(folder: Path) -> None:
    (folder / "golden.npz").write_bytes(b"PK\x03\x04 no zip")
    rehash(folder)


def set_field(name: str, value: object) -> Callable[[Path], None]:
    return lambda folder: edit_manifest(folder, lambda manifest: manifest.update({name: value}))


def escape(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["files"].update({"../../outside.txt": "0" * 64}))


def symlink(folder: Path) -> None:
    outside = folder.parent.parent / "outside.onnx"
    shutil.move(folder / "model.onnx", outside)
    (folder / "model.onnx").symlink_to(outside)


BREAKAGES = [
    (lambda folder: (folder / "model.onnx").unlink(), "model.onnx is missing"),
    (lambda folder: (folder / "golden.npz").unlink(), "golden.npz is missing"),
    (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read"),
    (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json has the wrong shape"),
    (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json has the wrong shape"),
    (set_field("labels", 3), "labels"),
    (set_field("surprise", 3), "surprise"),
    (set_field("model", "imdb_lstm"), "manifest.json is that of imdb_lstm version 1"),
    (set_field("version", 7), "manifest.json is that of mnist_mlp version 7"),
    (set_field("files", {}), "has no checksum of golden.npz"),
    (set_field("inputs", [{"name": "image", "dtype": "uint8", "shape": [None, 28, 28]}]), "inputs are image"),
    (set_field("inputs", [{"name": "pixels", "dtype": "float32", "shape": [None, 28, 28]}]), "float32"),
    (set_field("outputs", [{"name": "probabilities", "dtype": "float32", "shape": [None, 9]}]), "9"),
    (lambda folder: (folder / "model.onnx").write_bytes(b"changed"), "model.onnx has sha256"),
    (unreadable_graph, "model.onnx cannot be loaded"),
    (unreadable_golden, "golden.npz cannot be read"),
    (drop_golden_output, "golden.npz lacks outputs/probabilities"),
    (change_golden, "golden answers are not reproduced: probabilities differs by 0.01"),
    (escape, "lies outside the version folder"),
    (symlink, "model.onnx lies outside the version folder"),
]


@pytest.mark.parametrize(("break_", "reason"), BREAKAGES, ids=[reason for _, reason in BREAKAGES])
def test_a_broken_model_is_told_with_its_reason_and_the_others_serve(
    tmp_path: Path, break_: Callable[[Path], None], reason: str, caplog: pytest.LogCaptureFixture
):
    image_model(tmp_path)
    break_(digit_model(tmp_path))
    repository = load(tmp_path)
    record = records(repository)["mnist_mlp", 1]
    assert record.state == "UNAVAILABLE"
    assert reason in record.reason
    assert f"not serving mnist_mlp version 1: {record.reason}" in caplog.text
    assert set(repository.predictors) == {"cifar10_cnn"}
    assert repository.ready


def test_a_missing_vocabulary_is_told(tmp_path: Path):
    (sentiment_model(tmp_path) / "vocabulary.txt").unlink()
    assert records(load(tmp_path))["imdb_lstm", 1].reason == "vocabulary.txt is missing"


def test_with_no_model_left_nothing_is_ready(tmp_path: Path):
    (digit_model(tmp_path) / "model.onnx").unlink()
    assert not load(tmp_path).ready
    assert not load(tmp_path / "nowhere").ready


def test_what_serving_does_not_read_may_be_left_out_but_not_changed(tmp_path: Path):
    folder = digit_model(tmp_path)
    (folder / "report").mkdir()
    (folder / "report" / "card.md").write_text("card")
    rehash(folder)
    assert load(tmp_path).ready
    (folder / "report" / "card.md").write_text("changed")
    assert "report/card.md has sha256" in records(load(tmp_path))["mnist_mlp", 1].reason
    shutil.rmtree(folder / "report")
    assert load(tmp_path).ready


def test_folders_that_are_no_versions_are_no_models(tmp_path: Path):
    (tmp_path / "mnist_mlp" / "draft").mkdir(parents=True)
    (tmp_path / ".publishing" / "1").mkdir(parents=True)
    (tmp_path / "README.md").write_text("about")
    repository = load(tmp_path)
    assert [(record.model, record.reason) for record in repository.records] == [
        ("mnist_mlp", "there is no folder with a version number")
    ]


def test_only_the_models_named_are_loaded_and_a_missing_one_is_told(tmp_path: Path):
    digit_model(tmp_path)
    image_model(tmp_path)
    repository = load(tmp_path, models=("mnist_mlp", "imdb_gru"))
    assert set(repository.predictors) == {"mnist_mlp"}
    assert records(repository)["imdb_gru", 0].state == "UNAVAILABLE"


def test_the_default_model_answers_unless_another_is_named(tmp_path: Path):
    image_model(tmp_path)
    image_model(tmp_path, "vgg16_transfer", side=48)

    def is_image(manifest: object) -> bool:
        return manifest.task == "image"  # type: ignore[attr-defined]

    assert load(tmp_path).choose("image", is_image).manifest.model == "cifar10_cnn"
    other = load(tmp_path, default_models={"image": "vgg16_transfer"})
    assert other.choose("image", is_image).manifest.model == "vgg16_transfer"
    assert other.choose("image", is_image, "cifar10_cnn").manifest.model == "cifar10_cnn"
    absent = load(tmp_path, default_models={"image": "nowhere"})
    assert absent.choose("image", is_image).manifest.model == "cifar10_cnn"
    with pytest.raises(NotFoundError, match="there are: cifar10_cnn, vgg16_transfer"):
        other.choose("image", is_image, "mnist_mlp")
    with pytest.raises(UnavailableError):
        other.choose("digit", lambda manifest: manifest.task == "digit")


def test_every_model_has_a_profile_that_explains_itself(tmp_path: Path):
    digit_model(tmp_path)
    profile = load(tmp_path).predictors["mnist_mlp"].profile
    assert list(profile.milliseconds) == [2**power for power in range(len(profile.milliseconds))]
    assert profile.batch_size in profile.milliseconds
    assert f"at {profile.batch_size}" in profile.reason
