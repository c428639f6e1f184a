"""What is sent under load: requests made by our own code, each the same again for the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.preprocessing.image import encode_png
from serving.preprocessing.text import tokenize
from training.synthetic import DEFAULT_FONT, digits, objects, reviews

REVIEW_TOKENS = (20, 230, 500)
"""Words in the reviews sent: a remark, the mean of IMDB's, and the most that is read."""


@dataclass(frozen=True)
class Payload:
    """One POST request to the service.

    Attributes:
        name: what tables call it.
        path: route and query.
        media_type: of the body; empty if there is none.
        body: as it goes over the wire.
    """

    name: str
    path: str
    media_type: str
    body: bytes


def payloads(seed: int = 0) -> dict[str, Payload]:
    """One request of every kind, by name; deterministic in ``seed``."""
    return {payload.name: payload for payload in (*digit(seed), *image(seed), *sentiment(seed), *gan())}


def digit(seed: int = 0) -> Iterator[Payload]:
    """One drawn digit as raw pixels, as nested numbers and as a PNG file, all 28×28."""
    (pixels,), _ = digits(1, seed, (DEFAULT_FONT,))
    yield Payload("digit-raw", "/v1/digit", "application/octet-stream", pixels.tobytes())
    yield Payload("digit-json", "/v1/digit", "application/json", _nested(pixels))
    yield Payload("digit-png", "/v1/digit", "image/png", encode_png(pixels))


def image(seed: int = 0) -> Iterator[Payload]:
    """One synthetic picture as a 32×32 RGB PNG file."""
    (pixels,), _ = objects(1, seed)
    yield Payload("image-png", "/v1/image", "image/png", encode_png(pixels))


def sentiment(seed: int = 0) -> Iterator[Payload]:
    """A review of each of `REVIEW_TOKENS` lengths as plain text."""
    for tokens in REVIEW_TOKENS:
        yield Payload(f"sentiment-{tokens}", "/v1/sentiment", "text/plain", review(tokens, seed).encode())


def gan() -> Iterator[Payload]:
    """One sample of a seven."""
    yield Payload("gan-1", "/v1/gan/sample?n=1&digit=7&seed=1", "", b"")


def review(tokens: int, seed: int = 0) -> str:
    """A favourable review of exactly so many ``tokens``, as our tokenizer counts them."""
    texts, labels, _ = reviews(16 + tokens // 2, seed)  # half of them favourable, five words at least in each
    kept: list[str] = []
    missing = tokens
    for text, positive in zip(texts, labels, strict=True):
        for word in text.split() if positive else ():
            found = len(tokenize(word))  # "10/10," are two, "(" none
            if found <= missing:
                kept.append(word)
                missing -= found
            if missing == 0:
                return " ".join(kept)
    raise ValueError(f"the reviews of seed {seed} end {missing} words short of {tokens}")


def _nested(pixels: NDArray[np.uint8]) -> bytes:
    """Write ``{"images": [[…]]}`` with one image, without spaces."""
    return b'{"images":[%s]}' % str(pixels.tolist()).replace(" ", "").encode()
