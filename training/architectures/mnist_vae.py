"""``mnist_vae``: a convolutional variational autoencoder on MNIST, published as encoder and decoder.

Reaches a test bound of −100 nats, after about 17 minutes of one core:

    python -m training mnist_vae
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from serving.manifest import Metric, Preprocessing, Tensor
from serving.preprocessing.image import to_grey
from serving.tasks.sample import anomaly_score
from training import fitting
from training.architecture import Architecture, Arrays, Evaluation, Gate, History, Part, Run
from training.augmentation import batches
from training.classifier import draw_digits
from training.datasets import Dataset, load_cifar10, load_mnist
from training.figures import EpochGrid, drawn_digit_rows
from training.metrics import auroc
from training.registry import register

LATENT = 20
QUANTILE = 0.99


class Vae(keras.Model):
    """Encoder and decoder trained together on the evidence lower bound (Kingma & Welling, 2014).

    ``encoder``: uint8 (batch, 28, 28) to mean and log-variance (batch, LATENT); ``decoder``: float32 (batch, LATENT)
    to Bernoulli logits (batch, 28, 28) of the grey values taken as probabilities.
    """

    def __init__(self) -> None:
        super().__init__(name="mnist_vae")
        self.encoder, self.decoder = _encoder(), _decoder()

    def call(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Reconstruction loss and Kullback–Leibler divergence of each image, in nats (batch,), of one sample."""
        code = self.encoder({"pixels": pixels})
        mean, log_variance = code["mean"], code["log_variance"]
        latent = mean + tf.exp(log_variance / 2) * tf.random.normal(tf.shape(mean))
        logits = self.decoder(latent)
        target = tf.cast(pixels, tf.float32) / 255
        cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(target, logits)
        divergence = tf.exp(log_variance) + mean**2 - 1 - log_variance
        return {
            "reconstruction": tf.reduce_sum(cross_entropy, axis=(1, 2)),
            "divergence": tf.reduce_sum(divergence, axis=1) / 2,
        }

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:  # noqa: ANN401 - as Keras hands it over
        """One step of gradient descent on the mean negative bound."""
        pixels, _ = data
        with tf.GradientTape() as tape:
            terms = self(pixels)
            loss = tf.reduce_mean(terms["reconstruction"] + terms["divergence"])
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return self._figures(terms)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:  # noqa: ANN401
        """The same figures without a step."""
        pixels, _ = data
        return self._figures(self(pixels))

    def _figures(self, terms: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        total = terms["reconstruction"] + terms["divergence"]
        return {"loss": tf.reduce_mean(total), **{name: tf.reduce_mean(term) for name, term in terms.items()}}


def _encoder() -> keras.Model:
    pixels = keras.Input((28, 28), dtype="uint8", name="pixels")
    x = keras.layers.Rescaling(1 / 255)(pixels)
    x = keras.layers.Reshape((28, 28, 1))(x)
    x = keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(256, activation="relu")(x)
    mean = keras.layers.Dense(LATENT)(x)
    log_variance = keras.layers.Dense(LATENT)(x)
    return keras.Model({"pixels": pixels}, {"mean": mean, "log_variance": log_variance}, name="encoder")


def _decoder() -> keras.Model:
    latent = keras.Input((LATENT,), name="latent")
    x = keras.layers.Dense(256, activation="relu")(latent)
    x = keras.layers.Dense(7 * 7 * 64, activation="relu")(x)
    x = keras.layers.Reshape((7, 7, 64))(x)
    x = keras.layers.Conv2DTranspose(64, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Conv2DTranspose(32, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Conv2D(1, 3, padding="same")(x)
    return keras.Model(latent, keras.layers.Reshape((28, 28))(x), name="decoder")


@register("mnist_vae")
class MnistVae(Architecture):
    """Convolutional encoder (mean, log-variance) and decoder with 20 latent dimensions."""

    recipe: ClassVar = {
        "optimizer": "Adam, cosine decay",
        "epochs": 20,
        "batch_size": 128,
        "learning_rate": 2e-3,
        "latent": LATENT,
    }
    smoke: ClassVar = {"epochs": 4, "batch_size": 32}
    gates: ClassVar = {
        "test_elbo": Gate(least=-105, smoke=-500),
        "auroc_cifar10": Gate(least=0.99, smoke=0.6),
    }
    intended_use = "Drawing digits from a latent space, smoothing digits, and telling what is not a digit."
    limits = (
        "The score tells how badly an image is explained as a handwritten digit of MNIST's size and place; digits in "
        "an unusual hand score high too, and a strange image that is mostly black can score low."
    )

    def load(self, run: Run) -> Dataset:
        """MNIST."""
        return load_mnist(seed=run.seed, smoke=run.smoke)

    def build(self, data: Dataset, run: Run) -> keras.Model:
        """The two networks in one trainable model."""
        del run
        model = Vae()
        model(data.train.x[:1])
        return model

    def fit(self, model: keras.Model, data: Dataset, run: Run) -> History:
        """Adam on a cosine; the epoch of the best validation bound is kept."""
        recipe = self.settings(run)
        epochs, batch_size = recipe["epochs"], recipe["batch_size"]
        steps = epochs * -(-len(data.train) // batch_size)
        rate = keras.optimizers.schedules.CosineDecay(recipe["learning_rate"], steps)
        model.compile(optimizer=keras.optimizers.Adam(rate))
        train = tf.data.Dataset.from_tensor_slices((data.train.x, data.train.y))
        train = train.shuffle(len(data.train), seed=run.seed).batch(batch_size).prefetch(4)
        drawn = drawn_digit_rows(columns=8)
        grid = EpochGrid(run.work / "samples", lambda: reconstruct(model, drawn), columns=8)
        validation = batches(data.validation, 500, seed=run.seed)
        return fitting.fit(
            model, train, run, epochs=epochs, validation=validation, monitor="val_loss", callbacks=(grid,)
        )

    def evaluate(self, model: keras.Model, data: Dataset, run: Run) -> Evaluation:
        """The bound on the test set, the anomaly threshold from the validation set, and the score's AUROC."""
        terms = model.predict(batches(data.test, 500, seed=0), verbose=0)
        elbo = -float(np.mean(terms["reconstruction"] + terms["divergence"]))
        ordinary = scores(model, data.test.x)
        threshold = float(np.quantile(scores(model, data.validation.x), QUANTILE))
        objects = load_cifar10(seed=run.seed, smoke=run.smoke)
        grey = np.stack([to_grey(Image.fromarray(image), 28, 28) for image in objects.test.x])
        rotated = np.ascontiguousarray(np.rot90(data.test.x, axes=(1, 2)))
        on = f"{data.name} test set, {len(data.test)} images"
        against = {
            "auroc_cifar10": Metric(
                value=auroc(ordinary, scores(model, grey)),
                data=f"{on}, against {objects.name} test set in grey at 28×28, {len(grey)} images",
            ),
            "auroc_rotated": Metric(
                value=auroc(ordinary, scores(model, rotated)), data=f"{on}, against the same turned by 90°"
            ),
        }
        metrics = {
            "test_elbo": Metric(value=elbo, data=f"{on}, nats, Bernoulli likelihood on grey values, 1 sample"),
            **against,
            "test_above_threshold": Metric(value=float(np.mean(ordinary > threshold)), data=on),
        }
        return Evaluation(metrics, parameters={"threshold": threshold, "quantile": QUANTILE})

    def parts(self, model: keras.Model, data: Dataset, evaluation: Evaluation) -> tuple[Part, ...]:
        """Encoder and decoder; never the sampling between them, which is random."""
        del data
        image = Tensor(name="pixels", dtype="uint8", shape=(None, 28, 28))
        latent = keras.Input((LATENT,), name="latent")
        pixels = keras.layers.Activation("sigmoid")(model.decoder(latent))
        return (
            Part(
                name="mnist_vae_encoder",
                task="encode",
                model=model.encoder,
                inputs=(image,),
                outputs=tuple(
                    Tensor(name=name, dtype="float32", shape=(None, LATENT)) for name in ("mean", "log_variance")
                ),
                preprocessing=Preprocessing(kind="digit", parameters={"height": 28, "width": 28}),
                parameters=evaluation.parameters,
                examples=draw_digits,
            ),
            Part(
                name="mnist_vae_decoder",
                task="sample",
                model=keras.Model({"latent": latent}, {"pixels": pixels}),
                inputs=(Tensor(name="latent", dtype="float32", shape=(None, LATENT)),),
                outputs=(Tensor(name="pixels", dtype="float32", shape=(None, 28, 28)),),
                preprocessing=Preprocessing(kind="none"),
                examples=_draw_latents,
            ),
        )


def _draw_latents(rows: int, random: np.random.Generator) -> Arrays:
    return {"latent": random.standard_normal((rows, LATENT)).astype(np.float32)}


def reconstruct(model: Vae, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode the mean codes of uint8 (n, 28, 28) images; uint8 of the same shape."""
    logits = model.decoder(model.encoder({"pixels": pixels})["mean"])
    return np.rint(255 * tf.sigmoid(logits).numpy()).astype(np.uint8)


def scores(model: Vae, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Anomaly scores in nats (n,) of uint8 (n, 28, 28) images, as serving computes them."""
    rows = []
    for start in range(0, len(pixels), 500):
        batch = pixels[start : start + 500]
        code = model.encoder({"pixels": batch})
        mean, log_variance = code["mean"].numpy(), code["log_variance"].numpy()
        rows.append(anomaly_score(batch, mean, log_variance, tf.sigmoid(model.decoder(mean)).numpy()))
    return np.concatenate(rows).astype(np.float64)
