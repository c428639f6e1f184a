"""Who reads the digits that a generator draws: the published ``mnist_mlp``, or one trained for the occasion."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.manifest import ONNX_FILE
from training.architecture import Run
from training.architectures.mnist_mlp import MnistMlp
from training.datasets import Dataset
from training.parity import answer_onnx, open_session
from training.publishing import published_versions


@dataclass(frozen=True)
class Judge:
    """``read`` turns uint8 (n, 28, 28) images into int64 (n,) digits; ``name`` says who reads."""

    name: str
    read: Callable[[NDArray[np.uint8]], NDArray[np.int64]]


def digit_judge(data: Dataset, run: Run) -> Judge:
    """The highest published ``mnist_mlp`` of the run's repository; where there is none, one trained on ``data``."""
    versions = published_versions(run.output, "mnist_mlp")
    if versions:
        version = max(versions)
        graph = run.output / "mnist_mlp" / str(version) / ONNX_FILE
        session = open_session(graph)
        return Judge(
            f"mnist_mlp version {version}",
            lambda images: answer_onnx(session, {"pixels": images})["probabilities"].argmax(axis=1),
        )
    architecture = MnistMlp()
    with tempfile.TemporaryDirectory() as folder:
        own = replace(run, work=Path(folder), epochs=None)
        model = architecture.build(data, own)
        architecture.fit(model, data, own)
    return Judge(
        "an mnist_mlp trained for this evaluation",
        lambda images: model.predict(images, batch_size=500, verbose=0).argmax(axis=1),
    )
