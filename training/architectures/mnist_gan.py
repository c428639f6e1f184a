"""``mnist_gan``: a class-conditional DCGAN on MNIST, published as generator and discriminator.

``mnist_mlp`` reads 99.6 % of the samples as the digit that was asked for, after about 23 minutes of one core:

    python -m training mnist_gan
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from serving.manifest import Metric, Preprocessing, Tensor
from training import fitting
from training.architecture import Architecture, Arrays, Evaluation, Gate, History, Part, Run
from training.classifier import draw_digits
from training.datasets import DIGIT_LABELS, Dataset, load_mnist
from training.figures import EpochGrid
from training.judge import digit_judge
from training.registry import register

NOISE = 64
AVERAGING = 0.999
DIGIT_WEIGHT = 0.5


class Gan(keras.Model):
    """Generator and discriminator in contest (Goodfellow et al., 2014), both told the digit.

    The discriminator judges an image for its digit by projection (Miyato & Koyama, 2018) and also names the digit
    (Odena et al., 2017), of which the generator takes a part of its gradient. ``averaged`` holds a running mean of
    the generator's weights; it is the one that is published.
    """

    def __init__(self) -> None:
        super().__init__(name="mnist_gan")
        self.generator, self.averaged, self.discriminator = _generator(), _generator(), _discriminator()
        self.averaged.set_weights(self.generator.get_weights())
        self.averaged.trainable = False

    def compile(self, learning_rate: Any) -> None:  # noqa: ANN401 - number or schedule
        """Adam for each side, with DCGAN's momentum (Radford et al., 2016)."""
        super().compile()
        self.generator_optimizer = keras.optimizers.Adam(learning_rate, beta_1=0.5)
        self.discriminator_optimizer = keras.optimizers.Adam(learning_rate, beta_1=0.5)
        self.generator_optimizer.build(self.generator.trainable_variables)
        self.discriminator_optimizer.build(self.discriminator.trainable_variables)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:  # noqa: ANN401 - as Keras hands it over
        """One step of each side on the same fakes."""
        pixels, digits = data
        digits = tf.cast(digits, tf.int32)
        real = tf.cast(pixels, tf.float32) / 255
        asked = tf.random.uniform(tf.shape(digits), 0, 10, tf.int32)
        noise = tf.random.normal((tf.shape(digits)[0], NOISE))
        with tf.GradientTape() as generator_tape:
            fake = self.generator({"noise": noise, "digit": asked}, training=True)
            with tf.GradientTape() as discriminator_tape:
                on_real = self.discriminator({"image": real, "digit": digits}, training=True)
                on_fake = self.discriminator({"image": tf.stop_gradient(fake), "digit": asked}, training=True)
                contest = _binary(on_real["logit"], 0.9) + _binary(on_fake["logit"], 0.0)
                discriminator_loss = contest + _digit(on_real["digits"], digits)
            self._step(self.discriminator_optimizer, discriminator_tape, discriminator_loss, self.discriminator)
            judged = self.discriminator({"image": fake, "digit": asked}, training=True)
            generator_loss = _binary(judged["logit"], 1.0)
            with_digit = generator_loss + DIGIT_WEIGHT * _digit(judged["digits"], asked)
        self._step(self.generator_optimizer, generator_tape, with_digit, self.generator)
        for mean, value in zip(self.averaged.weights, self.generator.weights, strict=True):
            mean.assign(mean * AVERAGING + value * (1 - AVERAGING))
        return {
            "generator_loss": generator_loss,
            "discriminator_loss": contest,
            "digit_accuracy": tf.reduce_mean(
                tf.cast(tf.argmax(judged["digits"], axis=1, output_type=tf.int32) == asked, tf.float32)
            ),
        }

    @staticmethod
    def _step(optimizer: Any, tape: tf.GradientTape, loss: tf.Tensor, network: keras.Model) -> None:  # noqa: ANN401
        variables = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))


def _binary(logits: tf.Tensor, target: float) -> tf.Tensor:
    labels = tf.fill(tf.shape(logits), target)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))


def _digit(logits: tf.Tensor, digits: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(digits, logits))


def _generator() -> keras.Model:
    noise = keras.Input((NOISE,), name="noise")
    digit = keras.Input((), dtype="int32", name="digit")
    x = keras.layers.Concatenate()([noise, keras.layers.Embedding(10, 32)(digit)])
    x = keras.layers.Dense(7 * 7 * 128, use_bias=False)(x)
    x = keras.layers.Reshape((7, 7, 128))(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv2DTranspose(64, 4, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv2DTranspose(1, 4, strides=2, padding="same", activation="sigmoid")(x)
    return keras.Model({"noise": noise, "digit": digit}, keras.layers.Reshape((28, 28))(x), name="generator")


def _discriminator() -> keras.Model:
    image = keras.Input((28, 28), name="image")
    digit = keras.Input((), dtype="int32", name="digit")
    x = keras.layers.Reshape((28, 28, 1))(image)
    x = keras.layers.LeakyReLU(0.2)(keras.layers.Conv2D(64, 4, strides=2, padding="same")(x))
    x = keras.layers.Conv2D(128, 4, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.LeakyReLU(0.2)(keras.layers.BatchNormalization()(x))
    x = keras.layers.Flatten()(x)
    features = keras.layers.LeakyReLU(0.2)(keras.layers.Dense(128)(x))
    projection = keras.layers.Dot(axes=1)([features, keras.layers.Embedding(10, 128)(digit)])
    logit = keras.layers.Add()([keras.layers.Dense(1)(features), projection])
    digits = keras.layers.Dense(10)(features)
    return keras.Model({"image": image, "digit": digit}, {"logit": logit, "digits": digits}, name="discriminator")


@register("mnist_gan")
class MnistGan(Architecture):
    """DCGAN with batch normalisation, conditional on the digit."""

    needs = ("mnist_mlp",)
    recipe: ClassVar = {
        "optimizer": "Adam, beta_1 0.5, cosine decay; two sides in turn, real labels smoothed to 0.9",
        "epochs": 12,
        "batch_size": 128,
        "learning_rate": 5e-4,
        "noise": NOISE,
        "digit_weight": DIGIT_WEIGHT,
        "generator_averaging": AVERAGING,
    }
    smoke: ClassVar = {"epochs": 3, "batch_size": 32}
    gates: ClassVar = {
        "digit_agreement": Gate(least=0.97, smoke=0.0),
        "worst_digit_agreement": Gate(least=0.90, smoke=0.0),
        "diversity": Gate(least=0.70, smoke=0.0),
    }
    intended_use = "Drawing handwritten digits on demand: placeholder data, demonstrations, load tests."
    limits = (
        "Now and then it draws a digit that cannot be read, or another than the one asked for. It draws MNIST's style "
        "of handwriting at 28×28 pixels and nothing else."
    )

    def load(self, run: Run) -> Dataset:
        """MNIST; the labels are the condition."""
        return load_mnist(seed=run.seed, smoke=run.smoke)

    def build(self, data: Dataset, run: Run) -> keras.Model:
        """Both networks in one trainable model."""
        del data, run
        model = Gan()
        model.built = True
        return model

    def fit(self, model: keras.Model, data: Dataset, run: Run) -> History:
        """Both sides in turn; there is no figure to choose an epoch by, the last one's average is kept."""
        recipe = self.settings(run)
        epochs, batch_size = recipe["epochs"], recipe["batch_size"]
        train = tf.data.Dataset.from_tensor_slices((data.train.x, data.train.y))
        train = train.shuffle(len(data.train), seed=run.seed).batch(batch_size, drop_remainder=True).prefetch(4)
        rate = keras.optimizers.schedules.CosineDecay(recipe["learning_rate"], epochs * len(train))
        model.compile(rate)
        noise = np.random.default_rng(run.seed).standard_normal((100, NOISE)).astype(np.float32)
        digits = np.repeat(np.arange(10, dtype=np.int32), 10)
        samples = EpochGrid(run.work / "samples", lambda: generate(model.averaged, noise, digits), columns=10)
        return fitting.fit(model, train, run, epochs=epochs, monitor=None, callbacks=(samples,))

    def evaluate(self, model: keras.Model, data: Dataset, run: Run) -> Evaluation:
        """10 000 samples, 1 000 a digit: read by the digit classifier, and compared in variety with the test set."""
        rows = 50 if run.smoke else 1000
        digits = np.repeat(np.arange(10, dtype=np.int32), rows)
        noise = np.random.default_rng(run.seed).standard_normal((10 * rows, NOISE)).astype(np.float32)
        images = generate(model.averaged, noise, digits)
        judge = digit_judge(data, run)
        read = judge.read(images) == digits
        by_digit = read.reshape(10, rows).mean(axis=1)
        variety = [
            _pairwise_distance(images[digits == digit]) / _pairwise_distance(data.test.x[data.test.y == digit])
            for digit in range(10)
        ]
        on = f"{len(images)} samples, {rows} a digit"
        return Evaluation(
            {
                "digit_agreement": Metric(value=float(read.mean()), data=f"{on}, read by {judge.name}"),
                "worst_digit_agreement": Metric(
                    value=float(by_digit.min()), data=f"{on}, digit {by_digit.argmin()}, read by {judge.name}"
                ),
                "diversity": Metric(
                    value=float(np.min(variety)),
                    data=f"{on}: mean pairwise pixel distance within a digit over that of the {data.name} test set, "
                    f"digit {np.argmin(variety)}, the lowest; mean over the digits {np.mean(variety):.3f}",
                ),
            }
        )

    def parts(self, model: keras.Model, data: Dataset, evaluation: Evaluation) -> tuple[Part, ...]:
        """The averaged generator, and the discriminator on uint8 pixels."""
        del data, evaluation
        digit_tensor = Tensor(name="digit", dtype="int32", shape=(None,))
        noise, asked = keras.Input((NOISE,), name="noise"), keras.Input((), dtype="int32", name="digit")
        pixels, digit = (
            keras.Input((28, 28), dtype="uint8", name="pixels"),
            keras.Input((), dtype="int32", name="digit"),
        )
        scaled = keras.layers.Rescaling(1 / 255)(pixels)
        return (
            Part(
                name="mnist_gan_generator",
                task="sample",
                model=keras.Model(
                    {"noise": noise, "digit": asked},
                    {"pixels": model.averaged({"noise": noise, "digit": asked})},
                ),
                inputs=(Tensor(name="noise", dtype="float32", shape=(None, NOISE)), digit_tensor),
                outputs=(Tensor(name="pixels", dtype="float32", shape=(None, 28, 28)),),
                preprocessing=Preprocessing(kind="none"),
                labels=DIGIT_LABELS,
                examples=_draw_noise,
            ),
            Part(
                name="mnist_gan_discriminator",
                task="discriminate",
                model=keras.Model(
                    {"pixels": pixels, "digit": digit},
                    {"logit": model.discriminator({"image": scaled, "digit": digit})["logit"]},
                ),
                inputs=(Tensor(name="pixels", dtype="uint8", shape=(None, 28, 28)), digit_tensor),
                outputs=(Tensor(name="logit", dtype="float32", shape=(None, 1)),),
                preprocessing=Preprocessing(kind="digit", parameters={"height": 28, "width": 28}),
                labels=DIGIT_LABELS,
                examples=lambda rows, random: {
                    **draw_digits(rows, random),
                    "digit": _draw_digit(rows, random),
                },
            ),
        )


def generate(generator: keras.Model, noise: NDArray[np.float32], digits: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Draw one image a row of noise float32 (n, NOISE) and digits int32 (n,); uint8 (n, 28, 28)."""
    images = generator.predict({"noise": noise, "digit": digits}, batch_size=500, verbose=0)
    return np.rint(255 * images).astype(np.uint8)


def _pairwise_distance(images: NDArray[np.uint8]) -> float:
    """Mean Euclidean distance over all pairs of uint8 (n, height, width) images, in grey levels of 0–255."""
    rows = images.reshape(len(images), -1).astype(np.float64)
    squares = (rows**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0))
    pairs = len(rows) * (len(rows) - 1)
    return float((distances.sum() - np.trace(distances)) / pairs)


def _draw_noise(rows: int, random: np.random.Generator) -> Arrays:
    noise = random.standard_normal((rows, NOISE)).astype(np.float32)
    return {"noise": noise, "digit": _draw_digit(rows, random)}


def _draw_digit(rows: int, random: np.random.Generator) -> NDArray[np.int32]:
    return random.integers(0, 10, rows).astype(np.int32)
