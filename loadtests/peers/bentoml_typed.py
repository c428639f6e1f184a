"""The idiomatic BentoML service: typed API methods, one a form of input, as its page on input and output types has it.

Files, raw bytes and texts are "root inputs" (a positional-only parameter), so that they come as the request's body.
BentoML opens image files itself. The methods are plain functions, which BentoML runs in its thread; only
its access log is off, as everywhere here.
"""

from __future__ import annotations

from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType
from PIL.Image import Image, fromarray

from loadtests.peers.models import (
    Answer,
    DigitModel,
    GanModel,
    ImageModel,
    SentimentModel,
    digit_from_bytes,
    digits_from_pictures,
    images_from_pictures,
)


@bentoml.service(name="typed", logging={"access": {"enabled": False}})
class Typed:
    """The four models."""

    def __init__(self) -> None:
        self.digits, self.images, self.sentiments, self.gan = DigitModel(), ImageModel(), SentimentModel(), GanModel()

    @bentoml.api
    def digit_numbers(self, images: Annotated[np.ndarray, DType("uint8")]) -> Answer:
        """Read digits from nested numbers (n, 28, 28)."""
        return self.digits.answer(images)

    @bentoml.api
    def digit_bytes(self, pixels: bytes, /) -> Answer:
        """Read a digit from 784 raw bytes."""
        return self.digits.answer(digit_from_bytes(pixels))

    @bentoml.api
    def digit_file(self, image: Image, /) -> Answer:
        """Read a digit from an image file."""
        return self.digits.answer(digits_from_pictures([image]))

    @bentoml.api
    def image_file(self, image: Image, /) -> Answer:
        """Say what an image file shows."""
        return self.images.answer(images_from_pictures([image]))

    @bentoml.api
    def sentiment(self, text: str, /) -> Answer:
        """Judge a review."""
        return self.sentiments.answer(text)

    @bentoml.api
    def gan_sample(self, digit: int, seed: int) -> Image:
        """Draw a digit as PNG."""
        return fromarray(self.gan.sample(digit, seed))
