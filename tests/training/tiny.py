"""The smallest architecture that goes the whole way in a second or two."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

from training.architecture import Gate, Run
from training.augmentation import Augmentation
from training.classifier import ImageClassifier
from training.datasets import Dataset, load_mnist


class Tiny(ImageClassifier):
    """Flatten → Dense 10 softmax, on drawn digits."""

    name = "tiny"
    task = "digit"
    recipe: ClassVar = {"epochs": 1, "batch_size": 32, "learning_rate": 1e-2, "weight_decay": 0.0}
    smoke: ClassVar = {}
    augmentation = Augmentation()
    gates: ClassVar = {"test_accuracy": Gate(least=0.0, smoke=0.0)}
    intended_use = "Tests."
    limits = "It has seen a hundred digits."

    def load(self, run: Run) -> Dataset:
        data = _digits(run.seed)
        some = np.arange(100)
        return replace(
            data, train=data.train.take(some), validation=data.validation.take(some), test=data.test.take(some)
        )

    def layers(self) -> list[keras.layers.Layer]:
        return [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]


@functools.cache
def _digits(seed: int) -> Dataset:
    return load_mnist(seed=seed, smoke=True)


def tiny_run(folder: Path, **options: object) -> Run:
    return Run(output=folder / "models", work=folder / "work", smoke=True, **options)  # type: ignore[arg-type]


def names_below(folder: Path) -> list[str]:
    """Every name in a folder, hidden ones too; none when the folder is not there."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
