"""``vgg16_transfer``: pretrained VGG16 convolutions under a new head, then fine-tuned, on CIFAR-10."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from serving.manifest import Metric
from serving.preprocessing.image import resize_batch
from training import fitting
from training.architecture import Architecture, Arrays, Evaluation, Gate, History, Part, Run
from training.architectures.cifar10_cnn import Cifar10Cnn
from training.augmentation import Augmentation
from training.classifier import draw_objects, pixels_part
from training.datasets import Dataset, DatasetError, Split, load_cifar10
from training.metrics import classification
from training.registry import register

BGR_MEANS = (103.939, 116.779, 123.68)
"""ImageNet channel means, as ``keras.applications.vgg16.preprocess_input`` subtracts them."""
FINE_TUNED = "block5"
FROZEN_WEIGHTS = "frozen.weights.h5"


@register("vgg16_transfer")
class Vgg16Transfer(Architecture):
    """VGG16 without top → Flatten → Dense 256 ReLU → Dense 10 softmax; frozen first, then block 5 fine-tuned.

    With ``--base-weights imagenet`` (the default) the convolutions are downloaded by Keras; with a file they are read
    from ``.npz`` (arrays ``block1_conv1/kernel``, ``block1_conv1/bias``, …) or from a Keras ``.h5`` without top;
    with ``none`` they are random, which only shows that the way is whole.
    """

    recipe: ClassVar = {
        "optimizer": "AdamW, cosine decay, label smoothing 0.1",
        "augmentation": "mirror, shift 4 px",
        "feature_copies": 3,
        "head_epochs": 20,
        "head_learning_rate": 1e-3,
        "epochs": 15,
        "learning_rate": 1e-4,
        "weight_decay": 1e-2,
        "batch_size": 64,
        "scratch_epochs": 150,
    }
    smoke: ClassVar = {"feature_copies": 1, "head_epochs": 2, "epochs": 1, "rows": 100, "scratch_epochs": 1}
    gates: ClassVar = {"above_scratch": Gate(least=0.06, smoke=-1.0)}
    intended_use = "Photographs of one of the ten CIFAR-10 classes, where few labelled images are at hand."
    limits = (
        "It knows ten classes and answers one of them whatever it is shown. What the convolutions were pretrained on "
        "decides what they can tell apart."
    )

    def load(self, run: Run) -> Dataset:
        """CIFAR-10, or ``--train-per-class`` images of each class, at 32×32; resized batch by batch later."""
        data = load_cifar10(seed=run.seed, smoke=run.smoke, train_per_class=run.train_per_class)
        rows = self.settings(run).get("rows")
        if rows is None:
            return data
        some = np.arange(rows)
        return replace(
            data,
            train=data.train.take(some),
            validation=data.validation.take(some),
            test=data.test.take(some),
        )

    def build(self, data: Dataset, run: Run) -> keras.Model:
        """Pixels uint8 RGB (batch, size, size, 3) to probabilities float32 (batch, 10)."""
        size = run.image_size
        pixels = keras.Input((size, size, 3), dtype="uint8", name="pixels")
        base = vgg16_base(run.base_weights, size)
        base.trainable = False
        head = keras.Sequential(
            [
                keras.Input(base.output.shape[1:]),
                keras.layers.Flatten(),
                keras.layers.Dense(256, activation="relu"),
                keras.layers.Dense(len(data.labels), activation="softmax"),
            ],
            name="head",
        )
        return keras.Model(pixels, head(base(_centred_bgr(pixels))), name=self.name)

    def fit(self, model: keras.Model, data: Dataset, run: Run) -> History:
        """The head on cached features of the frozen base, then the head and block 5 at a small learning rate."""
        recipe = self.settings(run)
        images = _Images(run.image_size)
        base, head = model.get_layer("vgg16"), model.get_layer("head")
        features = keras.Model(model.input, base(_centred_bgr(model.input)))
        train = _features(features, data.train, images, run.work / "train.npy", copies=recipe["feature_copies"])
        validation = _features(features, data.validation, images, run.work / "validation.npy", copies=0)
        steps = recipe["head_epochs"] * -(-len(train[1]) // 128)
        _compile(head, recipe["head_learning_rate"], steps, recipe["weight_decay"])
        frozen = fitting.fit(
            head,
            _shuffled(*train, batch_size=128, seed=run.seed),
            run,
            epochs=recipe["head_epochs"],
            validation=_in_order(*validation),
            stage="frozen",
        )
        model.save_weights(run.work / FROZEN_WEIGHTS)

        base.trainable = True
        for layer in base.layers:
            layer.trainable = layer.name.startswith(FINE_TUNED)
        steps = recipe["epochs"] * -(-len(data.train) // recipe["batch_size"])
        _compile(model, recipe["learning_rate"], steps, recipe["weight_decay"])
        tuned = fitting.fit(
            model,
            images.batches(data.train, recipe["batch_size"], seed=run.seed),
            run,
            epochs=recipe["epochs"],
            validation=images.batches(data.validation, recipe["batch_size"]),
            stage="fine_tuned",
        )
        later = len(frozen.rows)
        return History((*frozen.rows, *({**row, "epoch": row["epoch"] + later} for row in tuned.rows)))

    def evaluate(self, model: keras.Model, data: Dataset, run: Run) -> Evaluation:
        """Accuracy fine-tuned, frozen, and of ``cifar10_cnn`` trained from scratch on the same images."""
        images = _Images(run.image_size)
        tuned = _classify(model, images, data)
        frozen_model = self.build(data, run)
        frozen_model.load_weights(run.work / FROZEN_WEIGHTS)
        frozen = _classify(frozen_model, images, data).metrics["test_accuracy"]
        scratch = Cifar10Cnn()
        own = replace(run, work=run.work / "scratch", epochs=self.settings(run)["scratch_epochs"])
        small = scratch.build(data, own)
        scratch.fit(small, data, own)
        from_scratch = scratch.evaluate(small, data, own).metrics["test_accuracy"]
        best = tuned.metrics["test_accuracy"]
        metrics = {
            "test_accuracy": best,
            "frozen_accuracy": frozen,
            "scratch_accuracy": Metric(
                value=from_scratch.value,
                data=f"{from_scratch.data}, cifar10_cnn from scratch on the same images",
            ),
            "above_scratch": Metric(value=best.value - from_scratch.value, data=best.data),
        }
        return replace(tuned, metrics=metrics)

    def parts(self, model: keras.Model, data: Dataset, evaluation: Evaluation) -> tuple[Part, ...]:
        """The one graph."""
        del evaluation
        size = model.inputs[0].shape[1]

        def examples(rows: int, random: np.random.Generator) -> Arrays:
            return {"pixels": resize_batch(draw_objects(rows, random)["pixels"], size, size)}

        return (pixels_part(self, "image", model, data, examples),)


def vgg16_base(weights: str, size: int) -> keras.Model:
    """VGG16's 13 convolutions (Simonyan & Zisserman, 2015) for (size, size, 3) images, with the given weights.

    Raises:
        DatasetError: the download failed, the file is not there, or it does not hold VGG16's convolutions.
    """
    shape = (size, size, 3)
    if weights == "imagenet":
        try:
            return keras.applications.VGG16(weights="imagenet", include_top=False, input_shape=shape)
        except Exception as error:  # Keras raises whatever its transport does
            message = (
                f"VGG16's ImageNet weights could not be downloaded ({error}). Give them with --base-weights FILE "
                "(.npz or Keras .h5 without top), or try again with a network."
            )
            raise DatasetError(message) from error
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=shape)
    if weights != "none":
        try:
            _read_weights(base, Path(weights))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            message = f"--base-weights {weights}: expected VGG16's convolutions without top, got: {error}"
            raise DatasetError(message) from error
    return base


def _read_weights(base: keras.Model, file: Path) -> None:
    if file.suffix != ".npz":
        base.load_weights(file)
        return
    with np.load(file) as arrays:
        for layer in base.layers:
            if layer.weights:
                parts = (f"{layer.name}/kernel", f"{layer.name}/bias")
                layer.set_weights([arrays[part].astype(np.float32) for part in parts])


def _centred_bgr(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """What ``keras.applications.vgg16.preprocess_input`` does, as part of the graph."""
    centred = keras.layers.Rescaling(1.0, offset=[-mean for mean in reversed(BGR_MEANS)])(pixels)
    return keras.ops.flip(centred, axis=-1)


class _Images:
    """CIFAR-10 images on their way into the network: changed at 32×32, then resized as serving does."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._augmentation = Augmentation(shift=4, flip=True, fill="reflect")

    def resize(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 (n, 32, 32, 3) to (n, size, size, 3)."""
        return resize_batch(pixels, self._size, self._size)

    def change(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A randomly changed copy, resized."""
        return self.resize(self._augmentation(pixels).numpy())

    def batches(self, split: Split, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """Batches in order; with a seed shuffled and changed anew each epoch. Labels are one-hot."""
        data = tf.data.Dataset.from_tensor_slices((split.x, _one_hot(split.y)))
        if seed is not None:
            data = data.shuffle(len(split), seed=seed).batch(batch_size)
            change = tf.autograph.experimental.do_not_convert(
                lambda pixels, labels: (self._augmentation(pixels), labels)
            )
            data = data.map(change)
        else:
            data = data.batch(batch_size)

        @tf.autograph.experimental.do_not_convert
        def resize(pixels: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            resized = tf.numpy_function(self.resize, [pixels], tf.uint8)
            return tf.ensure_shape(resized, (None, self._size, self._size, 3)), labels

        return data.map(resize, num_parallel_calls=2).prefetch(2)


def _features(
    features: keras.Model, split: Split, images: _Images, cache: Path, copies: int
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """What the frozen base makes of the split: once as it is and once for each changed copy, kept in ``cache``."""
    labels = np.tile(_one_hot(split.y), (copies + 1, 1))
    shape = (len(labels), *features.output.shape[1:])
    if cache.exists():
        return np.load(cache, mmap_mode="r"), labels
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(".partial.npy")
    array = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
    views: list[Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = [images.resize, *[images.change] * copies]
    with tqdm(total=len(labels), desc="features", unit=" images", disable=None) as progress:
        for copy, view in enumerate(views):
            for start in range(0, len(split), 100):
                made = features.predict_on_batch(view(split.x[start : start + 100]))
                first = copy * len(split) + start
                array[first : first + len(made)] = made
                progress.update(len(made))
    array.flush()
    partial.rename(cache)
    return array, labels


def _shuffled(x: NDArray[Any], y: NDArray[np.float32], batch_size: int, seed: int) -> tf.data.Dataset:
    rows = tf.data.Dataset.range(len(y)).shuffle(len(y), seed=seed).batch(batch_size)

    @tf.autograph.experimental.do_not_convert
    def take(chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = tf.numpy_function(lambda index: x[index].astype(np.float32), [chosen], tf.float32)
        return tf.ensure_shape(features, (None, *x.shape[1:])), tf.gather(y, chosen)

    return rows.map(take).prefetch(2)


def _in_order(x: NDArray[Any], y: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return x.astype(np.float32), y


def _one_hot(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.eye(10, dtype=np.float32)[labels]


def _compile(model: keras.Model, learning_rate: float, steps: int, weight_decay: float) -> None:
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile(keras.optimizers.AdamW(rate, weight_decay=weight_decay), loss, metrics=["accuracy"])


def _classify(model: keras.Model, images: _Images, data: Dataset) -> Evaluation:
    probabilities = model.predict(images.batches(data.test, 100), verbose=0)
    return classification(probabilities.argmax(axis=1), data.test.y, data)
