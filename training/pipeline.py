"""The model line, one call a stage: load → build → fit → evaluate → gate → export → check → publish."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import keras

from serving.manifest import DataSource, Manifest, Metric, Parity, file_digests, write_manifest
from training import figures
from training.architecture import Architecture, Evaluation, Gate, History, Part, Run
from training.card import model_card
from training.datasets import Dataset
from training.export import check_graph, convert, export_onnx, export_saved_model, toolchain
from training.fitting import claim
from training.parity import check_parity, speedups, write_golden
from training.publishing import publish, published_versions, staging

GOLDEN_TOLERANCE = 1e-4
SPEEDUP_TOKENS, PADDED_TOKENS = 230, 500


class GateError(RuntimeError):
    """A figure missed its gate; nothing was published."""


class Stages:
    """Prints a line a stage: its name, its figure, its seconds."""

    def __init__(self, title: str) -> None:
        self._title = title

    @contextmanager
    def __call__(self, name: str) -> Iterator[list[str]]:
        """Run one stage; what the block appends to the list is its figure."""
        began, said = time.monotonic(), list[str]()
        print(f"[{self._title}] {name} …", flush=True)
        yield said
        seconds = time.monotonic() - began
        print(f"[{self._title}] {name}: {'; '.join(said) or 'done'} ({seconds:.1f} s)", flush=True)


def train(architecture: Architecture, run: Run) -> list[Path]:
    """Take one architecture from data to published models.

    Returns:
        The version folders published, one a part.

    Raises:
        DatasetError: the data cannot be had.
        GateError, GraphError, ParityError: the model is not good enough, or not the same in all its forms;
            nothing of it is published.
        ResumeError: the work folder holds a run of other options or data.
    """
    stage = Stages(architecture.name)
    keras.utils.set_random_seed(run.seed)
    with stage("load") as said:
        data = architecture.load(run)
        sizes = f"{len(data.train)} to train, {len(data.validation)} to validate, {len(data.test)} to test"
        said.append(f"{data.name}, {sizes}")
    claim(run.work, _terms(architecture, data, run))
    with stage("build") as said:
        model = architecture.build(data, run)
        said.append(f"{model.count_params()} parameters")
    with stage("fit") as said:
        history = architecture.fit(model, data, run)
        said.append(f"{len(history.rows)} epochs, {history.seconds:.0f} s of training")
    with stage("evaluate") as said:
        evaluation = architecture.evaluate(model, data, run)
        said.extend(f"{name} {metric.value:.4f}" for name, metric in evaluation.metrics.items())
    with stage("gate") as said:
        said.append(gate(architecture.gates, evaluation.metrics, smoke=run.smoke))
    with ExitStack() as folders:
        staged = []
        for part in architecture.parts(model, data, evaluation):
            folder = folders.enter_context(staging(run.output))
            manifest = prepare(part, folder, architecture, data, history, evaluation, run, Stages(part.name))
            staged.append((folder, manifest))
        with stage("publish") as said:
            published = [publish(folder, run.output, manifest.model, manifest.version) for folder, manifest in staged]
            said.append(", ".join(map(str, published)))
    shutil.rmtree(run.work, ignore_errors=True)
    return published


def _terms(architecture: Architecture, data: Dataset, run: Run) -> dict[str, object]:
    """What the weights follow from: recipe, options and data."""
    options = ("seed", "smoke", "train_per_class", "base_weights", "image_size")
    given = {name: getattr(run, name) for name in options}
    return {**architecture.settings(run), **given, "data": f"{data.name} ({data.sha256[:12]})"}


def prepare(
    part: Part,
    folder: Path,
    architecture: Architecture,
    data: Dataset,
    history: History,
    evaluation: Evaluation,
    run: Run,
    stage: Stages,
) -> Manifest:
    """Fill a staged version folder: both exports, checked, with golden answers, report and manifest."""
    metrics = dict(evaluation.metrics)
    with stage("export_saved_model") as said:
        said.append(f"{export_saved_model(part, folder) / 1e6:.1f} MB")
    with stage("export_onnx") as said:
        graph = export_onnx(part, folder)
        said.append(f"{graph.ByteSize() / 1e6:.1f} MB")
    with stage("check_graph") as said:
        said.append(check_graph(part, graph))
        if part.trained is not None:
            plain = convert(replace(part, model=part.trained))
            padded, bare = speedups(part, folder, plain, SPEEDUP_TOKENS, PADDED_TOKENS)
            said.append(
                f"{padded:.1f} times as fast as the plain tf2onnx graph, {bare:.1f} times where that is not padded"
            )
            on = f"one review of {SPEEDUP_TOKENS} tokens, one thread, against the plain tf2onnx graph given the review"
            metrics["speedup"] = Metric(value=padded, data=f"{on} padded to {PADDED_TOKENS}")
            metrics["speedup_unpadded"] = Metric(value=bare, data=f"{on} unpadded")
    with stage("check_parity") as said:
        parity = check_parity(part, folder, run.seed)
        said.append(f"SavedModel {parity.saved_model:.1e}, onnxruntime {parity.onnx:.1e} from Keras")
        write_golden(part, folder, run.seed)
    manifest = _manifest(part, architecture, data, history, metrics, parity, run)
    write_report(folder / "report", manifest, architecture, data, history, evaluation, run)
    for name, content in part.files.items():
        (folder / name).write_bytes(content)
    manifest = manifest.model_copy(update={"files": file_digests(folder)})
    write_manifest(manifest, folder)
    return manifest


def gate(gates: Mapping[str, Gate], metrics: Mapping[str, Metric], *, smoke: bool) -> str:
    """Hold the figures against the gates and sum up in a line.

    Raises:
        GateError: naming every figure that missed, and by how much.
    """
    least = {name: bound.smoke if smoke else bound.least for name, bound in gates.items()}
    missed = [
        f"{name} is {metrics[name].value:.4f}, at least {bound} is asked"
        for name, bound in least.items()
        if not metrics[name].value >= bound
    ]
    if missed:
        raise GateError("; ".join(missed))
    return ", ".join(f"{name} {metrics[name].value:.4f} ≥ {bound}" for name, bound in least.items())


def _manifest(
    part: Part,
    architecture: Architecture,
    data: Dataset,
    history: History,
    metrics: Mapping[str, Metric],
    parity: Parity,
    run: Run,
) -> Manifest:
    return Manifest(
        model=part.name,
        version=max(published_versions(run.output, part.name), default=0) + 1,
        task=part.task,
        architecture=architecture.name,
        inputs=part.inputs,
        outputs=part.outputs,
        preprocessing=part.preprocessing,
        labels=part.labels,
        parameters=dict(part.parameters),
        metrics=dict(metrics),
        parity=parity,
        golden_tolerance=GOLDEN_TOLERANCE,
        data=DataSource(name=data.name, sha256=data.sha256),
        seed=run.seed,
        recipe=architecture.settings(run),
        duration_seconds=round(history.seconds, 1),
        toolchain=toolchain(),
        files={},
    )


def write_report(
    folder: Path,
    manifest: Manifest,
    architecture: Architecture,
    data: Dataset,
    history: History,
    evaluation: Evaluation,
    run: Run,
) -> None:
    """Learning curves, what the evaluation and the epochs drew, and the model card."""
    figures.learning_curves(history, folder / "learning_curves.png")
    if evaluation.confusion is not None:
        title = f"{manifest.model}: {manifest.metrics['test_accuracy'].value:.2%} on the test set"
        figures.confusion_matrix(evaluation.confusion, data.labels, title, folder / "confusion_matrix.png")
    frames = sorted((run.work / "samples").glob("epoch_*.png"))
    if frames:
        figures.film(frames, folder / "samples_by_epoch.png")
        shutil.copyfile(frames[-1], folder / "samples.png")
    summary = (architecture.__doc__ or "").strip().splitlines()[0]
    card = model_card(
        manifest,
        summary=summary,
        intended_use=architecture.intended_use,
        limits=architecture.limits,
        pictures=sorted(folder.glob("*.png")),
    )
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
