"""``mnist_mlp``: the first network of every tutorial, on MNIST."""

from __future__ import annotations

from typing import ClassVar

import keras

from training.architecture import Gate, Run
from training.augmentation import Augmentation
from training.classifier import ImageClassifier
from training.datasets import Dataset, load_mnist
from training.registry import register


@register("mnist_mlp")
class MnistMlp(ImageClassifier):
    """Flatten(28×28) → Dense 128 ReLU → Dense 10 softmax; Adam, sparse categorical cross-entropy."""

    task = "digit"
    recipe: ClassVar = {
        "optimizer": "AdamW, cosine decay",
        "augmentation": "shift 2 px, rotate 12°, zoom 12 %, shear 12 %",
        "epochs": 60,
        "batch_size": 256,
        "learning_rate": 3e-3,
        "weight_decay": 1e-4,
    }
    smoke: ClassVar = {"epochs": 10}
    augmentation = Augmentation(shift=2, rotate=12, zoom=0.12, shear=0.12)
    gates: ClassVar = {"test_accuracy": Gate(least=0.982, smoke=0.6)}
    intended_use = "Handwritten or printed single digits, as images."
    limits = (
        "It answers one of ten digits whatever it is shown: it has no answer for letters, several digits or no digit. "
        "Trained on handwriting of American census workers and students of the 1990s."
    )

    def load(self, run: Run) -> Dataset:
        """MNIST."""
        return load_mnist(seed=run.seed, smoke=run.smoke)

    def layers(self) -> list[keras.layers.Layer]:
        """The tutorial's."""
        return [
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
