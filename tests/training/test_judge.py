"""Who reads the digits that a generator draws."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training import synthetic
from training.architecture import Run
from training.datasets import load_mnist
from training.judge import digit_judge


@pytest.mark.timeout(1800)
def test_the_highest_published_classifier_reads(smoke_repository: Path, tmp_path: Path):
    for version in ("1", "10", "9"):
        shutil.copytree(smoke_repository / "mnist_mlp" / "1", tmp_path / "mnist_mlp" / version)
    for version in ("1", "9"):  # a reader of these would fail
        (tmp_path / "mnist_mlp" / version / "model.onnx").write_bytes(b"")
    judge = digit_judge(load_mnist(seed=0, smoke=True), Run(output=tmp_path, work=tmp_path, smoke=True))
    assert judge.name == "mnist_mlp version 10"
    pixels, labels = synthetic.digits(100, seed=9)
    assert np.mean(judge.read(pixels) == labels) > 0.6


def test_without_one_a_classifier_is_trained_for_the_occasion(tmp_path: Path):
    data = load_mnist(seed=0, smoke=True)
    run = Run(output=tmp_path / "models", work=tmp_path / "work", smoke=True, epochs=1)
    judge = digit_judge(replace(data, test=data.test.take(np.arange(0))), run)
    assert "trained for this evaluation" in judge.name
    assert np.mean(judge.read(data.test.x) == data.test.y) > 0.6, "by its own recipe, not by the run's one epoch"
    assert list(tmp_path.iterdir()) == []
