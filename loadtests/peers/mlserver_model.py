"""MLServer: a custom runtime a question, over the Open Inference Protocol (V2) in JSON.

The signature of ``predict`` tells MLServer how to decode and encode (``decode_args``). V2 has tensors, not pictures or
labels: files come as base64, answers are lists of labels beside arrays, and MLServer's REST has no raw bytes. Every
server here is held to one core, so the pool of worker processes is off (``parallel_workers`` 0), as its documentation
has it; so are batching, which is off unless asked for, and the log of each request (``debug``).

    mlserver start loadtests/peers/mlserver_models
"""

from __future__ import annotations

from typing import List, TypeAlias  # noqa: UP035 - MLServer finds its codecs by these very types

import numpy as np
from mlserver import MLModel
from mlserver.codecs import decode_args

from loadtests.peers.models import (
    Answer,
    DigitModel,
    GanModel,
    ImageModel,
    SentimentModel,
    digit_from_file,
    image_from_file,
)
from serving.preprocessing.image import encode_png

Strings: TypeAlias = List[str]  # noqa: UP006
Files: TypeAlias = List[bytes]  # noqa: UP006


class Digit(MLModel):
    """Read digits from pixels (n, 28, 28)."""

    async def load(self) -> bool:
        """Load the model."""
        self._model = DigitModel()
        return True

    @decode_args
    async def predict(self, pixels: np.ndarray) -> tuple[Strings, np.ndarray]:
        """Give labels and probabilities."""
        return _classes(self._model.predict(pixels.astype(np.uint8, copy=False)))


class DigitFile(MLModel):
    """Read a digit from the base64 of a file."""

    async def load(self) -> bool:
        """Load the model."""
        self._model = DigitModel()
        return True

    @decode_args
    async def predict(self, file: Files) -> tuple[Strings, np.ndarray]:
        """Give labels and probabilities."""
        return _classes(self._model.predict(digit_from_file(file[0])))


class ImageFile(MLModel):
    """Say what the base64 of an image file shows."""

    async def load(self) -> bool:
        """Load the model."""
        self._model = ImageModel()
        return True

    @decode_args
    async def predict(self, file: Files) -> tuple[Strings, np.ndarray]:
        """Give labels and probabilities."""
        return _classes(self._model.predict(image_from_file(file[0])))


class Sentiment(MLModel):
    """Judge reviews."""

    async def load(self) -> bool:
        """Load the model."""
        self._model = SentimentModel()
        return True

    @decode_args
    async def predict(self, text: Strings) -> tuple[Strings, np.ndarray]:
        """Give labels and their probabilities."""
        predictions = self._model.predict(text)
        return [it["label"] for it in predictions], np.array([it["confidence"] for it in predictions], np.float32)


class GanSample(MLModel):
    """Draw a digit as the base64 of a PNG file."""

    async def load(self) -> bool:
        """Load the model."""
        self._model = GanModel()
        return True

    @decode_args
    async def predict(self, digit: np.ndarray, seed: np.ndarray) -> Files:
        """Draw it."""
        return [encode_png(self._model.sample(int(digit[0]), int(seed[0])))]


def _classes(predictions: list[Answer]) -> tuple[Strings, np.ndarray]:
    return [it["label"] for it in predictions], np.array([it["probabilities"] for it in predictions], np.float32)
