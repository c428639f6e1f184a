"""The idiomatic BentoML service with its adaptive batching: the same models behind ``batchable=True``.

A batchable method takes and gives a list along the first axis, which BentoML fills from several requests; so there is
no form for one digit's raw bytes. Files come as multipart.
"""

from __future__ import annotations

from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType
from PIL.Image import Image

from loadtests.peers.models import (
    Answer,
    DigitModel,
    ImageModel,
    SentimentModel,
    digits_from_pictures,
    images_from_pictures,
)


@bentoml.service(name="batchable", logging={"access": {"enabled": False}})
class Batchable:
    """Three models; a sample is drawn from its own seed, so there is nothing to batch in the fourth."""

    def __init__(self) -> None:
        self.digits, self.images, self.sentiments = DigitModel(), ImageModel(), SentimentModel()

    @bentoml.api(batchable=True)
    def digit_numbers(self, images: Annotated[np.ndarray, DType("uint8")]) -> list[Answer]:
        """Read digits from nested numbers (n, 28, 28)."""
        return self.digits.predict(images)

    @bentoml.api(batchable=True)
    def digit_files(self, images: list[Image]) -> list[Answer]:
        """Read digits from image files."""
        return self.digits.predict(digits_from_pictures(images))

    @bentoml.api(batchable=True)
    def image_files(self, images: list[Image]) -> list[Answer]:
        """Say what image files show."""
        return self.images.predict(images_from_pictures(images))

    @bentoml.api(batchable=True)
    def sentiments_of(self, texts: list[str]) -> list[Answer]:
        """Judge reviews, in one batch as long as the longest."""
        return self.sentiments.predict(texts)
