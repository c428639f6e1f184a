"""Whether Keras, the SavedModel and onnxruntime give the same answers, and the golden answers kept for serving."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf

from serving.manifest import GOLDEN_FILE, ONNX_FILE, Parity
from training.architecture import Arrays, Part

TOLERANCE = 1e-5
BATCH_SIZES = (1, 3, 32)
GOLDEN_ROWS = 4


class ParityError(RuntimeError):
    """Two forms of the same model differ by more than the tolerance."""


def answer_keras(part: Part, inputs: Arrays) -> Arrays:
    """What the Keras model answers."""
    outputs = part.model(inputs, training=False)
    return {tensor.name: outputs[tensor.name].numpy() for tensor in part.outputs}


def answer_onnx(session: onnxruntime.InferenceSession, inputs: Arrays) -> Arrays:
    """What onnxruntime answers."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def open_session(graph: Path | bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def check_parity(part: Part, folder: Path, seed: int) -> Parity:
    """Compare the three on the part's synthetic inputs at batch sizes 1, 3 and 32.

    Raises:
        ParityError: an absolute difference above 1e-5, or an answer that is not finite.
    """
    session = open_session(folder / ONNX_FILE)
    saved = tf.saved_model.load(str(folder)).signatures["serving_default"]
    random = np.random.default_rng(seed)
    worst = {"SavedModel": 0.0, "onnxruntime": 0.0}
    for rows in BATCH_SIZES:
        inputs = part.examples(rows, random)
        expected = answer_keras(part, inputs)
        by_saved = saved(**{name: tf.constant(array) for name, array in inputs.items()})
        answers = {
            "SavedModel": {name: tensor.numpy() for name, tensor in by_saved.items()},
            "onnxruntime": answer_onnx(session, inputs),
        }
        for form, outputs in answers.items():
            for name, value in expected.items():
                difference = float(np.max(np.abs(outputs[name] - value)))
                if not difference <= TOLERANCE:  # also when it is not a number
                    message = (
                        f"{part.name}: {form} differs from Keras by {difference:.2e} in {name!r} at batch {rows}, "
                        f"allowed is {TOLERANCE:.0e}"
                    )
                    raise ParityError(message)
                worst[form] = max(worst[form], difference)
    return Parity(
        tolerance=TOLERANCE,
        batch_sizes=BATCH_SIZES,
        saved_model=worst["SavedModel"],
        onnx=worst["onnxruntime"],
    )


def write_golden(part: Part, folder: Path, seed: int) -> None:
    """Keep a few synthetic inputs with Keras' answers, for serving to replay before it is ready."""
    inputs = part.examples(GOLDEN_ROWS, np.random.default_rng(seed + 1))
    arrays = {f"inputs/{name}": array for name, array in inputs.items()}
    arrays |= {f"outputs/{name}": array for name, array in answer_keras(part, inputs).items()}
    np.savez_compressed(folder / GOLDEN_FILE, allow_pickle=False, **arrays)


def speedups(part: Part, folder: Path, plain: onnx.ModelProto, tokens: int, padded: int) -> tuple[float, float]:
    """How many times faster the published graph reads ``tokens`` ids than ``plain`` does, at batch 1 on one thread.

    The three run in turn, and medians of the paired ratios are returned, so that a busy machine slows all of them.

    Returns:
        The ratio where ``plain`` is given the review as it is usually trained and served, padded to ``padded`` ids,
        and the ratio where it is given the bare ids.
    """
    fused, unfused = open_session(folder / ONNX_FILE, 1), open_session(plain.SerializeToString(), 1)
    name = part.inputs[0].name
    bare = np.random.default_rng(0).integers(4, 10_000, (1, tokens)).astype(np.int32)
    full = np.pad(bare, ((0, 0), (0, padded - tokens)))
    seconds = np.array(
        [[_timed(fused, {name: bare}), _timed(unfused, {name: full}), _timed(unfused, {name: bare})] for _ in range(21)]
    )
    to_padded, to_bare = np.median(seconds[:, 1:] / seconds[:, :1], axis=0)
    return float(to_padded), float(to_bare)


def _timed(session: onnxruntime.InferenceSession, inputs: Arrays) -> float:
    began = time.perf_counter()
    session.run(None, inputs)
    return time.perf_counter() - began
