"""``/v1/gan/sample``, ``/v1/vae/*``: digits drawn and redrawn by networks, and how strange images are to them."""

from __future__ import annotations

import base64
import math
import secrets
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from serving.errors import UnusableError
from serving.http.media import prefers_json
from serving.http.messages import JSON, Reply, Request, json_reply
from serving.preprocessing.image import encode_png, grid, to_grey
from serving.tasks import Endpoint, Limits, Query, endpoint
from serving.tasks._classes import Answer, PicturesBody, header
from serving.tasks._pictures import TAKES, decode_pictures, to_pixels
from serving.tasks._reading import merge_options, read_json, unsupported, whole_number

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from serving.batching import Rows
    from serving.manifest import Manifest
    from serving.predictor import Predictor
    from serving.repository import Repository

_DEFAULT_SAMPLES = 16
_LARGEST_SEED = 2**63 - 1
_PIECE = 32
"""Samples run at once. Fixed, not profiled: how rows are batched shows in the last bits of the answer, and
the same seed has to give the same picture on every start."""


class SampleBody(BaseModel):
    """What to draw."""

    n: int | None = Field(None, description=f"how many; {_DEFAULT_SAMPLES} by default")
    seed: int | None = Field(None, description="the same seed gives the same picture; drawn when absent")
    model: str | None = Field(None, description="the model that shall answer")


class GanSampleBody(SampleBody):
    """What to draw, and which digit."""

    digit: int | None = Field(None, description="0 to 9; absent draws every digit in turn")


def anomaly_score(
    pixels: NDArray[np.uint8],
    mean: NDArray[np.float32],
    log_variance: NDArray[np.float32],
    reconstruction: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Say how strange images are to a variational autoencoder: the negative ELBO at the latent mean, in nats.

    The Bernoulli likelihood on grey values and the divergence from the prior of Kingma and Welling 2014,
    "Auto-encoding variational Bayes", appendix B.

    Args:
        pixels: uint8 (n, 28, 28), 0-255.
        mean: float32 (n, latent), of the approximate posterior.
        log_variance: float32 (n, latent), likewise.
        reconstruction: float32 (n, 28, 28), 0-1: what the decoder makes of ``mean``.

    Returns:
        float64 (n,), larger is stranger.
    """
    x = pixels.reshape(len(pixels), -1) / 255.0
    p = np.clip(reconstruction.reshape(len(pixels), -1).astype(np.float64), 1e-7, 1 - 1e-7)
    likelihood = (x * np.log(p) + (1 - x) * np.log1p(-p)).sum(axis=1)
    mu, log_var = mean.astype(np.float64), log_variance.astype(np.float64)
    divergence = 0.5 * (np.exp(log_var) + mu**2 - 1 - log_var).sum(axis=1)
    scores: NDArray[np.float64] = divergence - likelihood
    return scores


class _Sample(Endpoint["Rows"]):
    """Draw samples; a PNG grid, or JSON when that is asked for."""

    methods = ("GET", "POST")
    task = "sample"
    takes = (JSON,)
    body: ClassVar = SampleBody
    answer = None
    source: ClassVar[str]
    """The input that is drawn from a normal distribution."""

    def serves(self, manifest: Manifest) -> bool:
        """Take the sampling models that start from this source."""
        return manifest.task == "sample" and manifest.inputs[0].name == self.source

    def decode(self, request: Request, limits: Limits) -> Query:
        """Read what to draw from the query string or a JSON body, and draw the seed if none is given."""
        content: dict[str, Any] = {}
        if request.body:
            if request.media_type not in ("", JSON):
                raise unsupported(request.media_type, self.takes)
            content = read_json(request.body)
        options = merge_options(request.query, content)
        options["n"] = whole_number(options, "n", 1, limits.max_samples, _DEFAULT_SAMPLES)
        options["seed"] = whole_number(options, "seed", 0, _LARGEST_SEED, secrets.randbits(32))
        return Query(options=options)

    def preprocess(self, query: Query, models: tuple[Predictor, ...], limits: Limits) -> Rows:  # noqa: ARG002
        """Draw float32 (n, latent) from the standard normal distribution."""
        _, latent = models[0].manifest.inputs[0].shape
        if latent is None:
            raise TypeError(f"{models[0].manifest.model} does not say how many numbers {self.source} has")
        rng = np.random.default_rng(query.options["seed"])
        return {self.source: rng.standard_normal((query.options["n"], latent), np.float32)}

    def run(self, inputs: Rows, models: tuple[Predictor, ...], deadline: float) -> Coroutine[Any, Any, Rows]:
        """Draw, in batches shared with nobody."""
        rows = len(inputs[self.source])
        pieces = [
            {name: array[start : start + _PIECE] for name, array in inputs.items()} for start in range(0, rows, _PIECE)
        ]
        return models[0].predict_pieces(pieces, deadline, alone=True)

    def postprocess(
        self, request: Request, query: Query, inputs: Rows, outputs: Rows, models: tuple[Predictor, ...]
    ) -> Reply:
        """Show what was drawn."""
        manifest = models[0].manifest
        images = _to_grey_levels(outputs[manifest.outputs[0].name])
        seed = query.options["seed"]
        if prefers_json(request.accept):
            samples: list[dict[str, Any]] = [{"png": _png_base64(image)} for image in images]
            for sample, digit in zip(samples, inputs.get("digit", ()), strict=False):
                sample["digit"] = int(digit)
            return json_reply({**header(manifest), "seed": seed, "samples": samples})
        columns = math.ceil(math.sqrt(len(images)))
        return _png_reply(grid(images, columns), manifest, ("x-sextant-seed", str(seed)))


@endpoint
class GanSample(_Sample):
    """Draw handwritten digits with the generator of a GAN, of one digit or of all."""

    name = "gan_sample"
    path = "/v1/gan/sample"
    body: ClassVar = GanSampleBody
    source = "noise"

    def preprocess(self, query: Query, models: tuple[Predictor, ...], limits: Limits) -> Rows:
        """Draw the noise, and set the digits: int32 (n,), the one asked for or all of them in turn."""
        inputs = super().preprocess(query, models, limits)
        digits = len(models[0].manifest.labels)
        digit = whole_number(query.options, "digit", 0, digits - 1)
        # In order, so that the 100 of a 10×10 grid show one digit a row.
        asked = np.sort(np.arange(query.options["n"]) % digits) if digit is None else np.full(query.options["n"], digit)
        return {**inputs, "digit": asked.astype(np.int32)}


@endpoint
class VaeSample(_Sample):
    """Draw handwritten digits with the decoder of a variational autoencoder."""

    name = "vae_sample"
    path = "/v1/vae/sample"
    source = "latent"

    def preprocess(self, query: Query, models: tuple[Predictor, ...], limits: Limits) -> Rows:
        """Draw the latent vectors."""
        if "digit" in query.options:
            raise UnusableError("This model is not told which digit to draw; /v1/gan/sample takes a digit.")
        return super().preprocess(query, models, limits)


class _Autoencoder(Endpoint["Rows"]):
    """Encode images and decode them again."""

    task = "encode"
    takes = TAKES
    body: ClassVar = PicturesBody

    def serves(self, manifest: Manifest) -> bool:
        """Take encoders; `select` finds each its decoder."""
        return manifest.task == "encode"

    def select(self, repository: Repository, query: Query) -> tuple[Predictor, ...]:
        """Choose the encoder, and the decoder that was trained with it."""
        (encoder,) = super().select(repository, query)
        architecture = encoder.manifest.architecture
        decoder = repository.choose(
            f"decode {architecture}",
            lambda manifest: manifest.architecture == architecture and manifest.inputs[0].name == "latent",
        )
        return encoder, decoder

    def decode(self, request: Request, limits: Limits) -> Query:
        """Read the images."""
        return decode_pictures(request, limits)

    def preprocess(self, query: Query, models: tuple[Predictor, ...], limits: Limits) -> Rows:  # noqa: ARG002
        """Resize them to grey, uint8 (n, 28, 28); made to look like digits, the strange would not show."""
        manifest = models[0].manifest
        size = manifest.preprocessing.parameters
        height, width = size["height"], size["width"]
        pixels = to_pixels(query.items, (height, width), lambda image: to_grey(image, height, width))
        return {manifest.inputs[0].name: pixels}

    async def run(self, inputs: Rows, models: tuple[Predictor, ...], deadline: float) -> Rows:
        """Encode, then decode the mean."""
        encoder, decoder = models
        codes = await encoder.predict(inputs, deadline)
        drawn = await decoder.predict({"latent": codes["mean"]}, deadline)
        return {**codes, "reconstruction": drawn[decoder.manifest.outputs[0].name]}


@endpoint
class Reconstruct(_Autoencoder):
    """Redraw images: a PNG with each beside its reconstruction, or JSON when that is asked for."""

    name = "vae_reconstruct"
    path = "/v1/vae/reconstruct"
    answer = None

    def postprocess(
        self, request: Request, query: Query, inputs: Rows, outputs: Rows, models: tuple[Predictor, ...]
    ) -> Reply:
        """Show each image and what became of it."""
        del query
        manifest = models[0].manifest
        originals = inputs[manifest.inputs[0].name]
        redrawn = _to_grey_levels(outputs["reconstruction"])
        if prefers_json(request.accept):
            pairs = [
                {"original": _png_base64(original), "reconstruction": _png_base64(image)}
                for original, image in zip(originals, redrawn, strict=True)
            ]
            return json_reply({**header(manifest), "reconstructions": pairs})
        paired = np.stack([originals, redrawn], axis=1).reshape(-1, *originals.shape[1:])
        return _png_reply(grid(paired, 2), manifest)


class Strangeness(BaseModel):
    """How strange one image is."""

    score: float = Field(description="in nats; larger is stranger")
    threshold: float = Field(description="exceeded by 1 % of the digits that the model was validated on")
    anomalous: bool


class AnomalyAnswer(Answer):
    """One prediction an image, in their order."""

    predictions: list[Strangeness]


@endpoint
class Anomaly(_Autoencoder):
    """Say how unlike a handwritten digit an image is."""

    name = "vae_anomaly"
    path = "/v1/vae/anomaly"
    answer: ClassVar = AnomalyAnswer

    def postprocess(
        self, request: Request, query: Query, inputs: Rows, outputs: Rows, models: tuple[Predictor, ...]
    ) -> Reply:
        """Hold each score against the threshold."""
        del request, query
        manifest = models[0].manifest
        threshold = float(manifest.parameters["threshold"])
        scores = anomaly_score(
            inputs[manifest.inputs[0].name],
            outputs["mean"],
            outputs["log_variance"],
            outputs["reconstruction"],
        )
        predictions = [
            {"score": score, "threshold": threshold, "anomalous": score > threshold} for score in scores.tolist()
        ]
        return json_reply({**header(manifest), "predictions": predictions})


def _to_grey_levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _png_base64(image: NDArray[np.uint8]) -> str:
    return base64.b64encode(encode_png(image)).decode("ascii")


def _png_reply(image: NDArray[np.uint8], manifest: Manifest, *headers: tuple[str, str]) -> Reply:
    origin = (("x-sextant-model", manifest.model), ("x-sextant-version", str(manifest.version)))
    return Reply(encode_png(image), "image/png", headers=(*origin, *headers))
