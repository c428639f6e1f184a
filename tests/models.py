"""Makes small models in the shape of published ones: right inputs and outputs, arbitrary fixed weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from serving.manifest import (
    DataSource,
    Manifest,
    Metric,
    Parity,
    Preprocessing,
    Tensor,
    file_digests,
    write_manifest,
)

DIGITS = tuple("0123456789")
OBJECTS = tuple(f"object_{index}" for index in range(10))
LATENT = 8
THRESHOLD = 300.0
WORDS = ("the", "good", "bad", "film", "was", "it's")
"""Vocabulary of the sentiment models; "good" and "bad" are what they go by."""

_TYPES = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}
Arrays = Mapping[str, NDArray[Any]]


class _Graph:
    """Collects nodes and weights; every method adds one node and returns its output."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def add(self, op: str, *inputs: str, to: str = "", **attributes: object) -> str:
        name = to or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def cast(self, name: str) -> str:
        out = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node("Cast", [name], [out], to=TensorProto.FLOAT))
        return out

    def dense(self, name: str, rows: int, columns: int, *, to: str = "", scale: float = 1.0) -> str:
        weight = self.rng.normal(0, scale / np.sqrt(rows), (rows, columns)).astype(np.float32)
        return self.add("MatMul", name, self.constant(weight), to=to)

    def reshape(self, name: str, *shape: int, to: str = "") -> str:
        return self.add("Reshape", name, self.constant(np.array(shape, np.int64)), to=to)

    def unit(self, name: str) -> str:
        return self.add("Div", self.cast(name), self.constant(np.array(255, np.float32)))


def publish(  # noqa: PLR0913 (a manifest has this many parts)
    root: Path,
    model: str,
    *,
    version: int = 1,
    task: str,
    architecture: str = "",
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    preprocessing: Preprocessing,
    build: Callable[[_Graph], None],
    golden: Arrays,
    labels: tuple[str, ...] = (),
    parameters: Mapping[str, Any] | None = None,
    vocabulary: tuple[str, ...] = (),
    seed: int = 0,
) -> Path:
    """Write ``root/model/version`` and return it."""
    folder = root / model / str(version)
    folder.mkdir(parents=True)
    graph = _Graph(seed)
    build(graph)
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            model,
            [_value(tensor) for tensor in inputs],
            [_value(tensor) for tensor in outputs],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(proto)
    onnx.save(proto, folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in outputs]
    answers = dict(zip(names, session.run(names, dict(golden)), strict=True))
    np.savez(
        folder / "golden.npz",
        **{f"inputs/{name}": array for name, array in golden.items()},
        **{f"outputs/{name}": array for name, array in answers.items()},
    )
    if vocabulary:
        (folder / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    manifest = Manifest(
        model=model,
        version=version,
        task=task,
        architecture=architecture or model,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        preprocessing=preprocessing,
        labels=labels,
        parameters=dict(parameters or {}),
        metrics={"accuracy": Metric(value=0.5, data="made up")},
        parity=Parity(tolerance=1e-5, batch_sizes=(1,), saved_model=0.0, onnx=0.0),
        golden_tolerance=1e-4,
        data=DataSource(name="none", sha256="0" * 64),
        seed=seed,
        recipe={},
        duration_seconds=0.0,
        toolchain={},
        files=file_digests(folder),
    )
    write_manifest(manifest, folder)
    return folder


def digit_model(root: Path, model: str = "mnist_mlp", version: int = 1, seed: int = 1) -> Path:
    """Pixels → probabilities, linear."""

    def build(graph: _Graph) -> None:
        flat = graph.reshape(graph.unit("pixels"), -1, 784)
        graph.add("Softmax", graph.dense(flat, 784, 10, scale=20), to="probabilities", axis=-1)

    return publish(
        root,
        model,
        version=version,
        task="digit",
        inputs=[Tensor(name="pixels", dtype="uint8", shape=(None, 28, 28))],
        outputs=[Tensor(name="probabilities", dtype="float32", shape=(None, 10))],
        preprocessing=Preprocessing(kind="digit", parameters={"height": 28, "width": 28}),
        build=build,
        golden={"pixels": _pixels(3, 28, 28)},
        labels=DIGITS,
        seed=seed,
    )


def image_model(root: Path, model: str = "cifar10_cnn", *, side: int = 32, layers: int = 0) -> Path:
    """Pixels → probabilities; ``layers`` of 256×256 make it dear."""

    def build(graph: _Graph) -> None:
        flat = graph.reshape(graph.unit("pixels"), -1, side * side * 3)
        hidden = graph.dense(flat, side * side * 3, 256)
        square = graph.constant(graph.rng.normal(0, 1 / 16, (256, 256)).astype(np.float32))
        for _ in range(layers):
            hidden = graph.add("Tanh", graph.add("MatMul", hidden, square))
        graph.add("Softmax", graph.dense(hidden, 256, 10, scale=5), to="probabilities", axis=-1)

    return publish(
        root,
        model,
        task="image",
        inputs=[Tensor(name="pixels", dtype="uint8", shape=(None, side, side, 3))],
        outputs=[Tensor(name="probabilities", dtype="float32", shape=(None, 10))],
        preprocessing=Preprocessing(kind="image", parameters={"height": side, "width": side}),
        build=build,
        golden={"pixels": _pixels(3, side, side, 3)},
        labels=OBJECTS,
        seed=2,
    )


def sentiment_model(root: Path, model: str = "imdb_lstm") -> Path:
    """Tokens → sigmoid of the mean weight of the words; padding does not count."""
    weights = np.zeros((len(WORDS) + 4, 1), np.float32)
    weights[4 + WORDS.index("good")], weights[4 + WORDS.index("bad")] = 8, -8

    def build(graph: _Graph) -> None:
        table = graph.constant(weights)
        axes = graph.constant(np.array([1], np.int64))
        word = graph.add("Gather", table, "tokens")  # (B, T, 1)
        total = graph.add("ReduceSum", word, axes, keepdims=0)
        there = graph.cast(graph.add("Greater", "tokens", graph.constant(np.array(0, np.int32))))
        count = graph.add("ReduceSum", there, axes, keepdims=1)
        graph.add("Sigmoid", graph.add("Div", total, count), to="probability")

    return publish(
        root,
        model,
        task="sentiment",
        inputs=[Tensor(name="tokens", dtype="int32", shape=(None, None))],
        outputs=[Tensor(name="probability", dtype="float32", shape=(None, 1))],
        preprocessing=Preprocessing(kind="text", parameters={"max_tokens": 50, "vocabulary_size": len(WORDS) + 4}),
        build=build,
        golden={"tokens": np.array([[1, 4, 5, 7, 0, 0], [1, 6, 7, 8, 9, 2]], np.int32)},
        labels=("negative", "positive"),
        vocabulary=WORDS,
    )


def generator_model(root: Path, model: str = "mnist_gan_generator") -> Path:
    """Noise and digit → pixels."""

    def build(graph: _Graph) -> None:
        table = graph.constant(graph.rng.normal(0, 1, (10, 784)).astype(np.float32))
        drawn = graph.add("Add", graph.dense("noise", LATENT, 784), graph.add("Gather", table, "digit"))
        graph.reshape(graph.add("Sigmoid", drawn), -1, 28, 28, to="pixels")

    return publish(
        root,
        model,
        task="sample",
        architecture="mnist_gan",
        inputs=[
            Tensor(name="noise", dtype="float32", shape=(None, LATENT)),
            Tensor(name="digit", dtype="int32", shape=(None,)),
        ],
        outputs=[Tensor(name="pixels", dtype="float32", shape=(None, 28, 28))],
        preprocessing=Preprocessing(kind="none"),
        build=build,
        golden={"noise": _normal(3, LATENT), "digit": np.array([0, 4, 9], np.int32)},
        labels=DIGITS,
        seed=3,
    )


def discriminator_model(root: Path, model: str = "mnist_gan_discriminator") -> Path:
    """Pixels and digit → logit."""

    def build(graph: _Graph) -> None:
        flat = graph.reshape(graph.unit("pixels"), -1, 784)
        table = graph.constant(graph.rng.normal(0, 1, (10, 1)).astype(np.float32))
        graph.add("Add", graph.dense(flat, 784, 1), graph.add("Gather", table, "digit"), to="logit")

    return publish(
        root,
        model,
        task="discriminate",
        architecture="mnist_gan",
        inputs=[
            Tensor(name="pixels", dtype="uint8", shape=(None, 28, 28)),
            Tensor(name="digit", dtype="int32", shape=(None,)),
        ],
        outputs=[Tensor(name="logit", dtype="float32", shape=(None, 1))],
        preprocessing=Preprocessing(kind="digit", parameters={"height": 28, "width": 28}),
        build=build,
        golden={"pixels": _pixels(2, 28, 28), "digit": np.array([1, 7], np.int32)},
        labels=DIGITS,
        seed=4,
    )


def encoder_model(root: Path, model: str = "mnist_vae_encoder") -> Path:
    """Pixels → mean and log-variance."""

    def build(graph: _Graph) -> None:
        flat = graph.reshape(graph.unit("pixels"), -1, 784)
        graph.dense(flat, 784, LATENT, to="mean")
        graph.dense(flat, 784, LATENT, to="log_variance")

    return publish(
        root,
        model,
        task="encode",
        architecture="mnist_vae",
        inputs=[Tensor(name="pixels", dtype="uint8", shape=(None, 28, 28))],
        outputs=[
            Tensor(name="mean", dtype="float32", shape=(None, LATENT)),
            Tensor(name="log_variance", dtype="float32", shape=(None, LATENT)),
        ],
        preprocessing=Preprocessing(kind="digit", parameters={"height": 28, "width": 28}),
        build=build,
        golden={"pixels": _pixels(3, 28, 28)},
        parameters={"threshold": THRESHOLD, "quantile": 0.99},
        seed=5,
    )


def decoder_model(root: Path, model: str = "mnist_vae_decoder") -> Path:
    """Latent → pixels, mostly black, as digits are."""

    def build(graph: _Graph) -> None:
        drawn = graph.dense("latent", LATENT, 784)
        dark = graph.add("Sub", drawn, graph.constant(np.array(4, np.float32)))
        graph.reshape(graph.add("Sigmoid", dark), -1, 28, 28, to="pixels")

    return publish(
        root,
        model,
        task="sample",
        architecture="mnist_vae",
        inputs=[Tensor(name="latent", dtype="float32", shape=(None, LATENT))],
        outputs=[Tensor(name="pixels", dtype="float32", shape=(None, 28, 28))],
        preprocessing=Preprocessing(kind="none"),
        build=build,
        golden={"latent": _normal(3, LATENT)},
        seed=6,
    )


def publish_all(root: Path) -> Path:
    """Every model that the service has a route for; ``vgg16_transfer`` is dear enough to run in a thread."""
    digit_model(root)
    image_model(root)
    image_model(root, "vgg16_transfer", side=48, layers=400)
    sentiment_model(root)
    sentiment_model(root, "imdb_gru")
    generator_model(root)
    discriminator_model(root)
    encoder_model(root)
    decoder_model(root)
    return root


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    axes = [f"axis_{axis}" if size is None else size for axis, size in enumerate(tensor.shape)]
    return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], axes)


def _pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


def _normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(8).standard_normal(shape, np.float32)
