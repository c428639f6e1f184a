"""The whole model line on synthetic data: what ``python -m training all --smoke`` publishes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from PIL import Image

from serving.manifest import file_digests, read_manifest
from serving.preprocessing.text import Encoder, load_vocabulary, pad
from tests.training.conftest import SmokeRun

# The first test to run waits for the smoke run itself.
pytestmark = pytest.mark.timeout(1800)

MODELS = {
    "cifar10_cnn": ("cifar10_cnn", "image", "image"),
    "imdb_gru": ("imdb_gru", "sentiment", "text"),
    "imdb_lstm": ("imdb_lstm", "sentiment", "text"),
    "mnist_gan_discriminator": ("mnist_gan", "discriminate", "digit"),
    "mnist_gan_generator": ("mnist_gan", "sample", "none"),
    "mnist_mlp": ("mnist_mlp", "digit", "digit"),
    "mnist_vae_decoder": ("mnist_vae", "sample", "none"),
    "mnist_vae_encoder": ("mnist_vae", "encode", "digit"),
    "vgg16_transfer": ("vgg16_transfer", "image", "image"),
}
"""Architecture, task and preprocessing by model."""
CLASSIFIERS = {"cifar10_cnn", "imdb_gru", "imdb_lstm", "mnist_mlp", "vgg16_transfer"}
DRAWING = {"mnist_gan_discriminator", "mnist_gan_generator", "mnist_vae_decoder", "mnist_vae_encoder"}
RECURRENT = {"imdb_gru": "GRU", "imdb_lstm": "LSTM"}
STAGES = ["load", "build", "fit", "evaluate", "gate"]
PART_STAGES = ["export_saved_model", "export_onnx", "check_graph", "check_parity"]

every_model = pytest.mark.parametrize("model", MODELS)
every_recurrent = pytest.mark.parametrize("model", RECURRENT)


def version_folder(repository: Path, model: str) -> Path:
    return repository / model / "1"


def open_graph(repository: Path, model: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        version_folder(repository, model) / "model.onnx", providers=["CPUExecutionProvider"]
    )


def golden(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs by name."""
    with np.load(folder / "golden.npz") as arrays:
        return tuple(
            {name.removeprefix(kind): arrays[name] for name in arrays.files if name.startswith(kind)}
            for kind in ("inputs/", "outputs/")
        )


def test_every_model_is_there_once_and_nothing_else(smoke_repository: Path):
    found = sorted(path.relative_to(smoke_repository).as_posix() for path in smoke_repository.glob("*/*"))
    assert found == sorted(f"{model}/1" for model in MODELS)
    assert sorted(path.name for path in smoke_repository.iterdir()) == sorted(MODELS)


@pytest.mark.parametrize("architecture", sorted({architecture for architecture, _, _ in MODELS.values()}))
def test_each_stage_prints_its_line_in_order(smoke_run: SmokeRun, architecture: str):
    parts = [model for model in MODELS if MODELS[model][0] == architecture]
    finished = re.findall(r"^\[(\w+)\] (\w+): (.+) \(\d+\.\d s\)$", smoke_run.output, re.MULTILINE)
    ours = [(title, stage) for title, stage, _ in finished if title in {architecture, *parts}]
    of_parts = [title for title, stage in ours if stage == "export_onnx"]
    assert sorted(of_parts) == sorted(parts)
    assert ours == [
        *((architecture, stage) for stage in STAGES),
        *((part, stage) for part in of_parts for stage in PART_STAGES),
        (architecture, "publish"),
    ]
    figures = {stage: figure for title, stage, figure in finished if title == architecture}
    assert re.search(r"synthetic \(.+\), \d+ to train, \d+ to validate, \d+ to test", figures["load"])
    assert "≥" in figures["gate"]


def test_the_output_is_not_buried_in_warnings(smoke_run: SmokeRun):
    assert "AutoGraph" not in smoke_run.output + smoke_run.errors
    assert "Traceback" not in smoke_run.errors


@every_model
def test_a_version_holds_every_file_of_the_layout(smoke_repository: Path, model: str):
    folder = version_folder(smoke_repository, model)
    files = set(file_digests(folder))
    expected = {"saved_model.pb", "model.onnx", "golden.npz", "report/MODEL_CARD.md", "report/learning_curves.png"}
    if model in CLASSIFIERS:
        expected |= {"report/confusion_matrix.png"}
    if model in RECURRENT:
        expected |= {"vocabulary.txt"}
    if model in DRAWING:
        expected |= {"report/samples.png", "report/samples_by_epoch.png"}
    variables = {name for name in files if name.startswith("variables/")}
    assert "variables/variables.index" in variables
    assert files - variables == expected


@every_model
def test_the_manifest_is_valid_and_its_digests_are_right(smoke_repository: Path, model: str):
    folder = version_folder(smoke_repository, model)
    manifest = read_manifest(folder)
    assert (manifest.model, manifest.version) == (model, 1)
    assert (manifest.architecture, manifest.task, manifest.preprocessing.kind) == MODELS[model]
    assert manifest.files == file_digests(folder)
    assert manifest.data.name.startswith("synthetic")
    assert manifest.parity.batch_sizes == (1, 3, 32)
    assert max(manifest.parity.saved_model, manifest.parity.onnx) <= manifest.parity.tolerance == 1e-5
    assert {"tensorflow", "keras", "onnxruntime"} <= set(manifest.toolchain)
    assert all(np.isfinite(metric.value) and metric.data for metric in manifest.metrics.values())


@every_model
def test_every_axis_but_the_batch_is_as_promised(smoke_repository: Path, model: str):
    graph = onnx.load(version_folder(smoke_repository, model) / "model.onnx").graph
    manifest = read_manifest(version_folder(smoke_repository, model))
    for promised, found in ((manifest.inputs, graph.input), (manifest.outputs, graph.output)):
        shapes = {
            value.name: tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim) for value in found
        }
        assert shapes == {tensor.name: tensor.shape for tensor in promised}
        assert all(shape[0] is None for shape in shapes.values())


@every_model
def test_the_graph_gives_the_golden_answers(smoke_repository: Path, model: str):
    folder = version_folder(smoke_repository, model)
    tolerance = read_manifest(folder).golden_tolerance
    inputs, outputs = golden(folder)
    session = open_graph(smoke_repository, model)
    names = [output.name for output in session.get_outputs()]
    assert set(names) == set(outputs)
    for rows in (4, 1, 3):  # also fewer rows than were kept: the batch axis is free
        some = {name: array[:rows] for name, array in inputs.items()}
        for name, answer in zip(names, session.run(names, some), strict=True):
            np.testing.assert_allclose(answer, outputs[name][:rows], rtol=0, atol=tolerance)


@every_model
def test_the_golden_answers_differ_from_row_to_row(smoke_repository: Path, model: str):
    """A graph that ignored its input would reproduce constant answers."""
    _, outputs = golden(version_folder(smoke_repository, model))
    for answers in outputs.values():
        assert len(np.unique(answers.reshape(len(answers), -1), axis=0)) == len(answers)


@every_model
def test_the_saved_model_gives_the_golden_answers(smoke_repository: Path, model: str):
    folder = version_folder(smoke_repository, model)
    tolerance = read_manifest(folder).golden_tolerance
    inputs, outputs = golden(folder)
    loaded = tf.saved_model.load(str(folder))
    answers = loaded.signatures["serving_default"](**{name: tf.constant(value) for name, value in inputs.items()})
    assert set(answers) == set(outputs)
    for name, expected in outputs.items():
        np.testing.assert_allclose(answers[name].numpy(), expected, rtol=0, atol=tolerance)


@every_recurrent
def test_a_recurrent_graph_holds_one_fused_operator(smoke_repository: Path, model: str):
    graph = onnx.load(version_folder(smoke_repository, model) / "model.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert operators.count(RECURRENT[model]) == 1
    assert not {"Loop", "Scan", "If"} & set(operators)
    (fused,) = (node for node in graph.node if node.op_type == RECURRENT[model])
    assert fused.input[4], "without sequence_lens a review would cost its padding too"


@every_recurrent
def test_padding_changes_no_answer(smoke_repository: Path, model: str):
    session = open_graph(smoke_repository, model)
    random = np.random.default_rng(0)
    rows = [random.integers(1, 10_000, length).astype(np.int32) for length in (1, 7, 40, 230)]
    alone = np.concatenate([session.run(None, {"tokens": row[None]})[0] for row in rows])
    assert len(np.unique(alone)) == len(rows)
    together = session.run(None, {"tokens": pad(rows)})[0]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    for row, answer in zip(rows, alone, strict=True):
        padded = np.zeros((1, 500), np.int32)
        padded[0, : len(row)] = row
        np.testing.assert_allclose(session.run(None, {"tokens": padded})[0][0], answer, rtol=0, atol=1e-6)


@every_recurrent
def test_text_through_the_published_vocabulary_is_judged(smoke_repository: Path, model: str):
    folder = version_folder(smoke_repository, model)
    words = load_vocabulary((folder / "vocabulary.txt").read_bytes())
    encode = Encoder(words, **read_manifest(folder).preprocessing.parameters).encode
    session = open_graph(smoke_repository, model)
    texts = ("What a wonderful, moving film. I loved the acting.", "What an awful, boring film. I hated the acting.")
    encoded = [encode(text) for text in texts]
    assert max(review.unknown_tokens for review in encoded) <= 1
    good, bad = (float(session.run(None, {"tokens": review.ids[None]})[0][0, 0]) for review in encoded)
    assert good > 0.5 > bad


@every_recurrent
def test_the_speed_over_the_plain_graph_is_measured_and_kept(smoke_repository: Path, model: str):
    metric = read_manifest(version_folder(smoke_repository, model)).metrics["speedup"]
    assert metric.value > 1
    assert "230 tokens" in metric.data


def test_the_encoder_carries_a_threshold(smoke_repository: Path):
    parameters = read_manifest(version_folder(smoke_repository, "mnist_vae_encoder")).parameters
    assert parameters["threshold"] > 0
    assert parameters["quantile"] == 0.99


@every_model
def test_the_report_is_small_pictures_and_a_card_that_names_the_figures(smoke_repository: Path, model: str):
    folder = version_folder(smoke_repository, model)
    report, manifest = folder / "report", read_manifest(folder)
    card = (report / "MODEL_CARD.md").read_text("utf-8")
    for heading in ("Intended use", "Data", "Figures", "Limits"):
        assert f"## {heading}\n" in card
    for name, metric in manifest.metrics.items():
        assert f"| {name} | {metric.value:.4f} | {metric.data} |" in card
    assert manifest.data.name in card
    pictures = sorted(report.glob("*.png"))
    assert pictures
    for path in pictures:
        assert path.stat().st_size < 200_000
        assert f"]({path.name})" in card
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            low, high = picture.convert("L").getextrema()
        assert low < high, f"{path.name} is blank"


@every_model
def test_nothing_of_the_machine_it_was_made_on_is_kept(smoke_repository: Path, model: str):
    folder = version_folder(smoke_repository, model)
    texts = (folder / "manifest.json", folder / "report" / "MODEL_CARD.md")
    content = b"".join(path.read_bytes() for path in (*texts, folder / "model.onnx", folder / "saved_model.pb"))
    for place in (str(smoke_repository), str(Path.home()) + "/", str(Path(__file__).parents[2])):
        assert place.encode() not in content


def test_files_can_be_read_by_others(smoke_repository: Path):
    """The staging folder is private; a container runs the service as another user."""
    for path in smoke_repository.rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044


def test_the_manifest_is_text_to_read_and_to_compare(smoke_repository: Path):
    text = (version_folder(smoke_repository, "mnist_mlp") / "manifest.json").read_text("utf-8")
    assert text.endswith("}\n")
    assert next(iter(json.loads(text))) == "schema_version"
    assert len(text.splitlines()) > 30
