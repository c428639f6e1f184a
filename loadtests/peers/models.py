"""The models as the peers call them: our graphs, our preprocessing, our answers, and nothing of our server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from serving.preprocessing.image import open_image, to_digit, to_rgb
from serving.preprocessing.text import PADDING, Encoder, load_vocabulary, pad

EXPORTED: Final = Path(__file__).resolve().parents[2] / "exported_models"
Answer: TypeAlias = dict[str, Any]

_MAX_PIXELS: Final = 2**24  # the service's own default
_RANKED: Final = 3


class Graph:
    """An onnxruntime session on one thread, every server being held to one core.

    Args:
        folder: the version folder.
        file: the graph, if not the folder's own.
    """

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_bytes())
        self.labels: list[str] = self.manifest["labels"]
        self.header: Answer = {"model": self.manifest["model"], "version": self.manifest["version"]}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(file or folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self.session.get_outputs()][:1]

    def run(self, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run the graph on named inputs; its first output, rows first."""
        outputs: list[NDArray[np.float32]] = self.session.run(self._outputs, inputs)
        return outputs[0]


class DigitModel:
    """`mnist_mlp`."""

    def __init__(self) -> None:
        self._graph = Graph(EXPORTED / "mnist_mlp" / "1")

    def predict(self, pixels: NDArray[np.uint8]) -> list[Answer]:
        """Name each digit of uint8 (n, 28, 28), white ink on black."""
        return _classify(self._graph.run(pixels=pixels), self._graph.labels)

    def answer(self, pixels: NDArray[np.uint8]) -> Answer:
        """`predict`, and who predicted."""
        return self._graph.header | {"predictions": self.predict(pixels)}


class ImageModel:
    """`cifar10_cnn`."""

    def __init__(self) -> None:
        self._graph = Graph(EXPORTED / "cifar10_cnn" / "1")

    def predict(self, pixels: NDArray[np.uint8]) -> list[Answer]:
        """Name and rank what each picture of uint8 (n, 32, 32, 3) RGB shows."""
        labels = self._graph.labels
        probabilities = self._graph.run(pixels=pixels)
        predictions = _classify(probabilities, labels)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :_RANKED].tolist()
        for prediction, order in zip(predictions, best, strict=True):
            row = prediction["probabilities"]
            prediction["top"] = [{"label": labels[index], "confidence": row[index]} for index in order]
        return predictions

    def answer(self, pixels: NDArray[np.uint8]) -> Answer:
        """`predict`, and who predicted."""
        return self._graph.header | {"predictions": self.predict(pixels)}


class SentimentModel:
    """`imdb_lstm`.

    Args:
        file: another graph of it, with the same input and output.
        padded: every review to as many ids as the model takes at most, as it was trained.
    """

    def __init__(self, file: Path | None = None, *, padded: bool = False) -> None:
        folder = EXPORTED / "imdb_lstm" / "1"
        self._padded = padded
        self._graph = Graph(folder, file)
        self.encoder = Encoder(
            load_vocabulary((folder / "vocabulary.txt").read_bytes()),
            **self._graph.manifest["preprocessing"]["parameters"],
        )

    def predict(self, texts: Sequence[str]) -> list[Answer]:
        """Judge reviews, together in one batch as long as the longest."""
        negative, positive = self._graph.labels
        reviews = [self.encoder.encode(text) for text in texts]
        rows = [review.ids for review in reviews]
        if self._padded:
            rows.append(np.full(self.encoder.max_tokens, PADDING, np.int32))
        tokens = pad(rows)[: len(reviews)]
        probabilities = self._graph.run(tokens=tokens)[:, 0].tolist()
        return [
            {
                "label": positive if probability >= 0.5 else negative,
                "confidence": max(probability, 1 - probability),
                "tokens": review.tokens,
                "unknown_tokens": review.unknown_tokens,
                "truncated": review.truncated,
            }
            for review, probability in zip(reviews, probabilities, strict=True)
        ]

    def answer(self, text: str) -> Answer:
        """`predict` for one review, and who predicted."""
        return self._graph.header | {"predictions": self.predict([text])}


class GanModel:
    """`mnist_gan_generator`."""

    def __init__(self) -> None:
        self._graph = Graph(EXPORTED / "mnist_gan_generator" / "1")

    def sample(self, digit: int, seed: int) -> NDArray[np.uint8]:
        """Draw one ``digit``: uint8 (28, 28)."""
        noise = np.random.default_rng(seed).standard_normal((1, 64), np.float32)
        pixels = self._graph.run(noise=noise, digit=np.array([digit], np.int32))[0]
        levels: NDArray[np.uint8] = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
        return levels


def digit_from_bytes(data: bytes) -> NDArray[np.uint8]:
    """784 raw bytes to uint8 (1, 28, 28)."""
    return np.frombuffer(data, np.uint8).reshape(1, 28, 28)


def digits_from_numbers(images: Iterable[Iterable[Iterable[int]]]) -> NDArray[np.uint8]:
    """Nested whole numbers from 0 to 255 to uint8 (n, 28, 28); ``bytes`` reads them faster than numpy does."""
    return np.frombuffer(bytes(chain.from_iterable(chain.from_iterable(images))), np.uint8).reshape(-1, 28, 28)


def digit_from_file(data: bytes) -> NDArray[np.uint8]:
    """A picture of a digit, decoded and normalised as the service does: uint8 (1, 28, 28)."""
    return digits_from_pictures([open_image(data, max_pixels=_MAX_PIXELS)])


def digits_from_pictures(pictures: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Decoded pictures of digits to uint8 (n, 28, 28)."""
    return np.stack([to_digit(picture) for picture in pictures])


def image_from_file(data: bytes) -> NDArray[np.uint8]:
    """A picture, decoded and resized as the service does: uint8 (1, 32, 32, 3)."""
    return images_from_pictures([open_image(data, max_pixels=_MAX_PIXELS)])


def images_from_pictures(pictures: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Decoded pictures to uint8 (n, 32, 32, 3)."""
    return np.stack([to_rgb(picture, 32, 32) for picture in pictures])


def _classify(probabilities: NDArray[np.float32], labels: list[str]) -> list[Answer]:
    return [
        {"label": labels[index], "index": index, "confidence": row[index], "probabilities": row}
        for index, row in zip(probabilities.argmax(axis=1).tolist(), probabilities.tolist(), strict=True)
    ]
