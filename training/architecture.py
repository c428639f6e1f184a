"""What an architecture is to the pipeline: the base class, and the records that pass between stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import onnx
from numpy.typing import NDArray

from serving.manifest import Metric, Preprocessing, Tensor
from training.datasets import Dataset

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Run:
    """The options of one run, as given on the command line.

    Attributes:
        seed: of every random choice: split, initial weights, order, augmentation, noise.
        epochs: in place of the architecture's own number, when given.
        smoke: synthetic data, one or two epochs, lenient gates; every stage included.
        output: the model repository to publish to.
        work: this run's working folder (a checkpoint an epoch, the log); a run begun again with the same
            folder goes on where it stopped.
        train_per_class: training images kept of each class, or all of them.
        base_weights, image_size: of ``vgg16_transfer``; see there.
    """

    output: Path
    work: Path
    seed: int = 0
    epochs: int | None = None
    smoke: bool = False
    train_per_class: int | None = None
    base_weights: str = "imagenet"
    image_size: int = 224


@dataclass(frozen=True)
class History:
    """One row of figures an epoch (``epoch``, ``seconds``, losses and metrics), in order."""

    rows: tuple[dict[str, float], ...]

    @property
    def seconds(self) -> float:
        """Time spent in training, summed over the epochs, also over those before a resumption."""
        return sum(row["seconds"] for row in self.rows)


@dataclass(frozen=True)
class Gate:
    """A figure that must be reached before a model is published; ``smoke`` is its value on synthetic data."""

    least: float
    smoke: float


@dataclass(frozen=True)
class Part:
    """One graph to publish as a model of its own.

    Attributes:
        model: Keras model from a dict of named inputs to a dict of named outputs, deterministic.
        examples: ``examples(rows, generator)`` draws that many synthetic input rows, by input name; used for
            parity and for the golden answers.
        build_onnx: makes the graph from the weights where tf2onnx's own conversion would not do.
        fused: the ONNX operator that the graph must hold, e.g. ``LSTM``; such a graph has no ``Loop``/``Scan``.
        trained: of a fused part the model as it was trained, whose plain tf2onnx graph its speed is compared with.
        files: further files of the version folder, by name.
    """

    name: str
    task: str
    model: keras.Model
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    preprocessing: Preprocessing
    examples: Callable[[int, np.random.Generator], Arrays]
    labels: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    build_onnx: Callable[[], onnx.ModelProto] | None = None
    fused: str | None = None
    trained: keras.Model | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The figures of the official test set, with what the report draws from them.

    Attributes:
        metrics: by name; each says what it was measured on.
        parameters: what serving needs beside the graph and is known only after evaluation (a threshold).
        confusion: int64 (classes, classes), rows true, columns answered; classifiers only.
    """

    metrics: Mapping[str, Metric]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    confusion: NDArray[np.int64] | None = None


class Architecture(ABC):
    """One architecture: its data, layers, recipe, evaluation and gates; registered by ``@register(name)``.

    A subclass names its recipe's numbers in ``recipe`` (they go into the manifest as they stand), what a smoke run
    changes of them in ``smoke``, and the gates in ``gates``; the pipeline calls the methods in the order in which
    they stand here.
    """

    name: ClassVar[str]
    recipe: ClassVar[Mapping[str, Any]]
    smoke: ClassVar[Mapping[str, Any]]
    gates: ClassVar[Mapping[str, Gate]]
    intended_use: ClassVar[str]
    limits: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    """Models whose published version the evaluation uses."""

    def settings(self, run: Run) -> dict[str, Any]:
        """The recipe as this run follows it."""
        asked = {} if run.epochs is None else {"epochs": run.epochs}
        return {**self.recipe, **(self.smoke if run.smoke else {}), **asked}

    @abstractmethod
    def load(self, run: Run) -> Dataset:
        """The data, with its validation split taken from the training set."""

    @abstractmethod
    def build(self, data: Dataset, run: Run) -> keras.Model:
        """A new model with fresh weights."""

    @abstractmethod
    def fit(self, model: keras.Model, data: Dataset, run: Run) -> History:
        """Train ``model`` in place on ``data.train``; only ``data.validation`` may take part in choosing."""

    @abstractmethod
    def evaluate(self, model: keras.Model, data: Dataset, run: Run) -> Evaluation:
        """Measure on the whole of ``data.test``."""

    @abstractmethod
    def parts(self, model: keras.Model, data: Dataset, evaluation: Evaluation) -> tuple[Part, ...]:
        """The graphs to publish."""
