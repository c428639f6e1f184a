"""The exported graph: what it must look like to pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import onnx
import onnx.reference
import pytest
import tensorflow as tf

from serving.manifest import Preprocessing, Tensor
from training.architecture import Part
from training.export import GraphError, check_graph, convert, export_onnx, export_saved_model


def a_part(*names: str) -> Part:
    """A linear map of three numbers, answered under every given name."""
    x = keras.Input((3,), name="x")
    outputs = {name: keras.layers.Dense(2)(x) for name in names or ("y",)}
    return Part(
        name="linear",
        task="digit",
        model=keras.Model({"x": x}, outputs),
        inputs=(Tensor(name="x", dtype="float32", shape=(None, 3)),),
        outputs=tuple(Tensor(name=name, dtype="float32", shape=(None, 2)) for name in outputs),
        preprocessing=Preprocessing(kind="none"),
        examples=lambda rows, random: {"x": random.standard_normal((rows, 3)).astype(np.float32)},
    )


def exported(part: Part, folder: Path, change: Callable[[onnx.GraphProto], None]) -> onnx.ModelProto:
    """The part's graph, changed before it is exported."""

    def build() -> onnx.ModelProto:
        model = convert(part)
        change(model.graph)
        return model

    return export_onnx(replace(part, build_onnx=build), folder)


def test_a_graph_as_promised_passes(tmp_path: Path):
    part = a_part()
    assert "batch axis free" in check_graph(part, export_onnx(part, tmp_path))


def test_outputs_keep_their_names_in_any_order(tmp_path: Path):
    part = a_part("zeta", "alpha")
    graph = export_onnx(part, tmp_path)
    check_graph(part, graph)
    assert {output.name for output in graph.graph.output} == {"zeta", "alpha"}
    session = onnx.reference.ReferenceEvaluator(graph)
    inputs = part.examples(4, np.random.default_rng(0))
    answers = dict(zip(session.output_names, session.run(None, inputs), strict=True))
    expected = part.model(inputs)
    for name in ("zeta", "alpha"):
        np.testing.assert_allclose(answers[name], expected[name].numpy(), rtol=0, atol=1e-6)


def test_a_fixed_batch_axis_is_refused(tmp_path: Path):
    def fix(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    part = a_part()
    with pytest.raises(GraphError, match=r"linear: the graph's inputs are .*1, 3.*expected .*None, 3"):
        check_graph(part, exported(part, tmp_path, fix))


def test_a_wrong_name_is_refused(tmp_path: Path):
    part = a_part()
    promised = replace(part, outputs=(Tensor(name="answer", dtype="float32", shape=(None, 2)),))
    with pytest.raises(GraphError, match=r"linear: the graph's outputs are .*'y'.*expected .*'answer'"):
        check_graph(promised, export_onnx(part, tmp_path))


def test_a_wrong_shape_is_refused(tmp_path: Path):
    part = a_part()
    promised = replace(part, inputs=(Tensor(name="x", dtype="float32", shape=(None, None)),))
    with pytest.raises(GraphError, match="the graph's inputs are"):
        check_graph(promised, export_onnx(part, tmp_path))


def test_a_wrong_dtype_is_refused(tmp_path: Path):
    part = a_part()
    promised = replace(part, inputs=(Tensor(name="x", dtype="uint8", shape=(None, 3)),))
    with pytest.raises(GraphError, match="the graph's inputs are"):
        check_graph(promised, export_onnx(part, tmp_path))


def test_a_recurrence_left_as_a_loop_is_refused(tmp_path: Path):
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(9, 3, mask_zero=True)(tokens)
    part = Part(
        name="masked",
        task="sentiment",
        model=keras.Model({"tokens": tokens}, {"y": keras.layers.GRU(2)(x)}),
        inputs=(Tensor(name="tokens", dtype="int32", shape=(None, None)),),
        outputs=(Tensor(name="y", dtype="float32", shape=(None, 2)),),
        preprocessing=Preprocessing(kind="none"),
        examples=lambda rows, random: {"tokens": random.integers(1, 9, (rows, 4)).astype(np.int32)},
        fused="GRU",
    )
    with pytest.raises(GraphError, match=r"masked: expected one fused GRU and none of .*Loop"):
        check_graph(part, export_onnx(part, tmp_path))


def test_a_saved_model_is_nothing_but_graph_and_weights(tmp_path: Path):
    part = a_part()
    part.model.compile("adam", "mse")
    part.model.fit({"x": np.ones((4, 3), np.float32)}, {"y": np.ones((4, 2), np.float32)}, verbose=0)
    size = export_saved_model(part, tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"}
    assert size == sum((tmp_path / name).stat().st_size for name in files)
    saved = dict(tf.train.list_variables(str(tmp_path / "variables" / "variables")))
    del saved["_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert sorted(saved.values()) == [[2], [3, 2]]  # Adam would add two of each
    assert b"Adam" not in (tmp_path / "saved_model.pb").read_bytes()
