"""What the image classifiers share: uint8 pixels in, class probabilities out, one way to train and measure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import keras
import numpy as np

from serving.manifest import Preprocessing, Tensor
from training import fitting, synthetic
from training.architecture import Architecture, Arrays, Evaluation, History, Part, Run
from training.augmentation import Augmentation, batches
from training.datasets import Dataset
from training.metrics import classification


class ImageClassifier(Architecture):
    """A stack of layers on pixels scaled to 0–1; the scaling is the graph's first operation.

    Subclasses name ``task`` (``digit`` or ``image``) and ``augmentation`` and give the ``layers``.
    """

    task: ClassVar[Literal["digit", "image"]]
    augmentation: ClassVar[Augmentation]

    @abstractmethod
    def layers(self) -> list[keras.layers.Layer]:
        """The architecture's layers, from float32 pixels in 0–1 to float32 (batch, classes) probabilities."""

    def build(self, data: Dataset, run: Run) -> keras.Model:
        """Pixels uint8 (batch, height, width[, 3]) to probabilities float32 (batch, classes)."""
        del run
        pixels = keras.Input(data.train.x.shape[1:], dtype="uint8", name="pixels")
        x = keras.layers.Rescaling(1 / 255)(pixels)
        for layer in self.layers():
            x = layer(x)
        return keras.Model(pixels, x, name=self.name)

    def fit(self, model: keras.Model, data: Dataset, run: Run) -> History:
        """Adam with decoupled weight decay on a cosine; the epoch of the best validation accuracy is kept."""
        recipe = self.settings(run)
        epochs = recipe["epochs"]
        train = batches(data.train, recipe["batch_size"], seed=run.seed, augmentation=self.augmentation)
        rate = keras.optimizers.schedules.CosineDecay(recipe["learning_rate"], epochs * len(train))
        optimizer = keras.optimizers.AdamW(rate, weight_decay=recipe["weight_decay"])
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        validation = batches(data.validation, 500, seed=run.seed)
        return fitting.fit(model, train, run, epochs=epochs, validation=validation)

    def evaluate(self, model: keras.Model, data: Dataset, run: Run) -> Evaluation:
        """Accuracy on the test images."""
        del run
        probabilities = model.predict(batches(data.test, 500, seed=0), verbose=0)
        return classification(probabilities.argmax(axis=1), data.test.y, data)

    def parts(self, model: keras.Model, data: Dataset, evaluation: Evaluation) -> tuple[Part, ...]:
        """The one graph."""
        del evaluation
        return (pixels_part(self, self.task, model, data, draw_digits if self.task == "digit" else draw_objects),)


def pixels_part(
    architecture: Architecture,
    task: Literal["digit", "image"],
    model: keras.Model,
    data: Dataset,
    examples: Callable[[int, np.random.Generator], Arrays],
) -> Part:
    """The graph of a classifier: pixels uint8 (batch, height, width[, 3]) to probabilities float32 (batch, classes)."""
    pixels = model.inputs[0]
    shape = tuple(pixels.shape)
    return Part(
        name=architecture.name,
        task=task,
        model=keras.Model({"pixels": pixels}, {"probabilities": model(pixels)}),
        inputs=(Tensor(name="pixels", dtype="uint8", shape=shape),),
        outputs=(Tensor(name="probabilities", dtype="float32", shape=(None, len(data.labels))),),
        preprocessing=Preprocessing(kind=task, parameters={"height": shape[1], "width": shape[2]}),
        examples=examples,
        labels=data.labels,
    )


def draw_digits(rows: int, random: np.random.Generator) -> Arrays:
    """Drawn digits as uint8 (rows, 28, 28)."""
    return {"pixels": synthetic.digits(rows, _seed(random))[0]}


def draw_objects(rows: int, random: np.random.Generator) -> Arrays:
    """Drawn objects as uint8 (rows, 32, 32, 3)."""
    return {"pixels": synthetic.objects(rows, _seed(random))[0]}


def _seed(random: np.random.Generator) -> Any:  # noqa: ANN401 - numpy's integer
    return int(random.integers(2**31))
