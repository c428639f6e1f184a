"""From a Keras model to its SavedModel and its ONNX graph, and what the graph must look like."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import onnx
import tensorflow as tf
import tf2onnx

from serving.manifest import ONNX_FILE, Tensor
from training.architecture import Part

OPSET = 18
_UNFUSED = {"Loop", "Scan", "If"}


class GraphError(RuntimeError):
    """The ONNX graph is not what the part promises."""


def _signature(part: Part) -> list[tf.TensorSpec]:
    return [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in part.inputs]


def _inference(part: Part) -> Any:  # noqa: ANN401 - tf.function has no public type
    """The model as a function of its named inputs, traced on the CPU: a GPU trace has operators tf2onnx lacks."""
    names = [tensor.name for tensor in part.inputs]

    def infer(*arrays: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.device("/CPU:0"):
            outputs = part.model(dict(zip(names, arrays, strict=True)), training=False)
        return {tensor.name: tf.identity(outputs[tensor.name], tensor.name) for tensor in part.outputs}

    return tf.function(infer, input_signature=_signature(part))


def export_saved_model(part: Part, folder: Path) -> int:
    """Write ``saved_model.pb`` and ``variables/`` straight into ``folder``, as TensorFlow Serving wants them.

    Returns:
        The size of all written files, in bytes.
    """
    module = tf.Module()
    module.weights = [weight.value for weight in part.model.variables]  # not the model: that drags its optimizer along
    module.serve = _inference(part)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    (folder / "fingerprint.pb").unlink(missing_ok=True)  # differs by run; the manifest's sha256 do its work
    for empty in ("assets", "assets.extra"):
        if (folder / empty).is_dir() and not any((folder / empty).iterdir()):
            (folder / empty).rmdir()
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def export_onnx(part: Part, folder: Path) -> onnx.ModelProto:
    """Write ``model.onnx``: from the part's own builder where it has one, else by tf2onnx."""
    graph = part.build_onnx() if part.build_onnx is not None else convert(part)
    for tensor in (*graph.graph.input, *graph.graph.output):
        axis = tensor.type.tensor_type.shape.dim[0]
        if not axis.HasField("dim_value"):  # a fixed batch axis is left for check_graph to find
            axis.dim_param = "batch"
    graph.producer_name, graph.doc_string = "sextant", ""
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(folder / ONNX_FILE))
    return graph


def convert(part: Part) -> onnx.ModelProto:
    """The graph as tf2onnx makes it, its inputs and outputs under the part's names."""
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    graph, _ = tf2onnx.convert.from_function(_inference(part), input_signature=_signature(part), opset=OPSET)
    # tf2onnx names outputs after the flattened dict, whose keys TensorFlow sorts.
    for output, name in zip(graph.graph.output, sorted(tensor.name for tensor in part.outputs), strict=True):
        _rename(graph, output.name, name)
    return graph


def _rename(graph: onnx.ModelProto, old: str, new: str) -> None:
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for tensor in (*graph.graph.input, *graph.graph.output):
        if tensor.name == old:
            tensor.name = new


def check_graph(part: Part, graph: onnx.ModelProto) -> str:
    """Compare the graph with the part's promise and sum it up in a line.

    Raises:
        GraphError: other inputs or outputs than promised, a fixed batch axis, or a recurrence left unfused.
    """
    for kind, promised, found in (
        ("inputs", part.inputs, graph.graph.input),
        ("outputs", part.outputs, graph.graph.output),
    ):
        expected = {tensor.name: tensor for tensor in promised}
        actual = {tensor.name: _describe(tensor) for tensor in found}
        if actual != expected:
            message = f"{part.name}: the graph's {kind} are {actual}, expected {expected}"
            raise GraphError(message)
    operators = [node.op_type for node in graph.graph.node]
    if part.fused is not None and (operators.count(part.fused) != 1 or _UNFUSED & set(operators)):
        message = f"{part.name}: expected one fused {part.fused} and none of {sorted(_UNFUSED)}, got {operators}"
        raise GraphError(message)
    fused = f", one fused {part.fused}, no Loop or Scan" if part.fused else ""
    return f"{len(operators)} operators, batch axis free{fused}"


def _describe(value: onnx.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return Tensor(name=value.name, dtype=dtype, shape=shape)


def toolchain() -> dict[str, str]:
    """Versions of what made the model."""
    import numpy as np  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415

    modules = (tf, keras, tf2onnx, onnx, onnxruntime, np)
    return {module.__name__: module.__version__ for module in modules}
