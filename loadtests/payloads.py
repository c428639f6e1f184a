"""What is sent under load: requests made by our own code, each the same again for the same seed.

`payloads` gives one request of each kind, for the bench; `pools` many of each route, as different as users' are.
"""

from __future__ import annotations

import base64
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from serving.preprocessing.image import encode_png
from serving.preprocessing.text import tokenize
from training.datasets import DATA_DIR_VARIABLE, DatasetError, load_mnist, test_reviews
from training.synthetic import DEFAULT_FONT, digits, draw_digit, fonts, objects, reviews

REVIEW_TOKENS = (20, 230, 500)
"""Words in the reviews sent: a remark, the mean of IMDB's, and the most that is read."""
ROUTES: Final = ("digit-raw", "digit-png", "digit-json", "image", "sentiment", "gan", "vae")
"""What load tests send and report apart."""
POOL: Final = 128
"""Different requests of a route; they are sent in turn."""
REVIEW_MEDIAN, REVIEW_SPREAD = 174.0, 0.747
"""Words of IMDB's reviews (Maas et al. 2011, "Learning word vectors for sentiment analysis"), as a log-normal: median
174, mean exp(ln 174 + 0.747²/2) = 230, 5 % above 600, as counted in the data set."""
SHORTEST_REVIEW, LONGEST_REVIEW = 10, 2470
"""Words of IMDB's shortest and longest review."""
_OCTETS, _PNG, _JSON, _TEXT = "application/octet-stream", "image/png", "application/json", "text/plain"

Kind = Literal["digit", "image", "sentiment", "samples", "pairs", "anomaly", ""]


@dataclass(frozen=True)
class Payload:
    """One request to the service, and what a right answer to it holds.

    Attributes:
        name: what tables call it; in pools the route's name.
        path: route and query.
        media_type: of the body; empty if there is none.
        body: as it goes over the wire.
        method: of HTTP.
        accept: media type asked for; empty if any will do.
        kind: of the answer: predictions of a task, sampled pictures, pairs of pictures, strangeness.
        rows: predictions, pictures or pairs that the answer holds.
        tokens: words of each text sent.
        digit: that samples were asked to show.
        seed: that samples were asked to come from.
    """

    name: str
    path: str
    media_type: str
    body: bytes
    method: str = "POST"
    accept: str = ""
    kind: Kind = ""
    rows: int = 1
    tokens: tuple[int, ...] = ()
    digit: int | None = None
    seed: int | None = None


def payloads(seed: int = 0) -> dict[str, Payload]:
    """One request of every kind, by name; deterministic in ``seed``."""
    return {payload.name: payload for payload in (*digit(seed), *image(seed), *sentiment(seed), *gan())}


def digit(seed: int = 0) -> Iterator[Payload]:
    """One drawn digit as raw pixels, as nested numbers and as a PNG file, all 28×28."""
    (pixels,), _ = digits(1, seed, (DEFAULT_FONT,))
    yield Payload("digit-raw", "/v1/digit", _OCTETS, pixels.tobytes())
    yield Payload("digit-json", "/v1/digit", _JSON, _nested([pixels]))
    yield Payload("digit-png", "/v1/digit", _PNG, encode_png(pixels))


def image(seed: int = 0) -> Iterator[Payload]:
    """One synthetic picture as a 32×32 RGB PNG file."""
    (pixels,), _ = objects(1, seed)
    yield Payload("image-png", "/v1/image", _PNG, encode_png(pixels))


def sentiment(seed: int = 0) -> Iterator[Payload]:
    """A review of each of `REVIEW_TOKENS` lengths as plain text."""
    for tokens in REVIEW_TOKENS:
        yield Payload(f"sentiment-{tokens}", "/v1/sentiment", _TEXT, review(tokens, seed).encode())


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


# --- pools: many different requests of a route ---------------------------------------------------------------


def pools(seed: int = 0, *, real: bool = False) -> dict[str, list[Payload]]:
    """`POOL` requests of each of `ROUTES`; deterministic in ``seed``.

    Args:
        real: take digits, pictures and reviews from the test sets in ``$SEXTANT_DATA_DIR``; they are sent and kept
            nowhere. Otherwise they are drawn and composed by our own code.

    Raises:
        DatasetError: ``real``, and the data is not there.
    """
    rng = np.random.default_rng(seed)
    pixels = _real_digits(rng) if real else digits(POOL, seed)[0]
    pictures = _real_pictures(rng) if real else [encode_png(picture) for picture in objects(POOL, seed)[0]]
    texts = _real_reviews(rng) if real else composed_reviews(POOL, seed)
    small = [encode_png(digit) for digit in pixels]
    made = {
        "digit-raw": [_digit("digit-raw", _OCTETS, digit.tobytes()) for digit in pixels],
        "digit-png": [_digit("digit-png", _PNG, file) for file in _mixed(small, _large_digits(POOL // 2, rng))],
        "digit-json": list(_json_digits(pixels, small)),
        "image": [Payload("image", "/v1/image?top=3", _PNG, file, kind="image") for file in pictures],
        "sentiment": [_sentiment(text) for text in texts],
        "gan": list(_gan(rng)),
        "vae": list(_vae(pixels, small, rng)),
    }
    return {route: [requests[row] for row in rng.permutation(len(requests))] for route, requests in made.items()}


def composed_reviews(n: int, seed: int) -> list[str]:
    """Reviews as long as IMDB's, each of one opinion; see `REVIEW_MEDIAN`."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(np.log(REVIEW_MEDIAN), REVIEW_SPREAD, n))
    lengths = np.clip(lengths.round().astype(int), SHORTEST_REVIEW, LONGEST_REVIEW)
    texts, labels, _ = reviews(256, seed)  # some 30 000 words, begun at a place of its own for each review
    words = [
        " ".join(text for text, label in zip(texts, labels, strict=True) if label == side).split() for side in (0, 1)
    ]
    composed = []
    for row, length in enumerate(lengths):
        side = words[row % 2]
        start = int(rng.integers(len(side)))
        composed.append(" ".join(side[(start + place) % len(side)] for place in range(length)))
    return composed


def _digit(name: str, media_type: str, body: bytes, rows: int = 1) -> Payload:
    return Payload(name, "/v1/digit", media_type, body, kind="digit", rows=rows)


def _large_digits(n: int, rng: np.random.Generator) -> Iterator[bytes]:
    """PNG files of digits as people send them: dark on light, 64 to 400 pixels a side, in all fonts."""
    names = fonts()
    for row in range(n):
        side = int(rng.choice([64, 128, 200, 280, 400]))
        drawn = draw_digit(
            row % 10,
            size=(side, side),
            font=names[int(rng.integers(len(names)))],
            height=float(rng.uniform(0.4, 0.8)),
            angle=float(rng.uniform(-15, 15)),
            shift=(float(rng.uniform(-0.08, 0.08)), float(rng.uniform(-0.08, 0.08))),
            ink=int(rng.integers(0, 60)),
            paper=int(rng.integers(200, 256)),
        )
        yield encode_png(np.asarray(drawn))


def _json_digits(pixels: NDArray[np.uint8], files: Sequence[bytes]) -> Iterator[Payload]:
    """Nested numbers and base64 files in turn, one image in most requests and four in every eighth."""
    for row in range(len(pixels)):
        rows = 4 if row % 8 == 7 else 1
        chosen = [(row + step) % len(pixels) for step in range(rows)]
        body = _nested([pixels[one] for one in chosen]) if row % 2 else _base64([files[one] for one in chosen])
        yield _digit("digit-json", _JSON, body, rows)


def _sentiment(text: str) -> Payload:
    return Payload("sentiment", "/v1/sentiment", _TEXT, text.encode(), kind="sentiment", tokens=(len(tokenize(text)),))


def _gan(rng: np.random.Generator) -> Iterator[Payload]:
    """Mostly one digit, sometimes sixteen or a grid of all; as PNG and as JSON; with a seed of their own."""
    for row in range(POOL):
        n, seed = (1, 1, 4, 16)[row % 4], int(rng.integers(2**32))
        digit = None if n == 16 else int(rng.integers(10))
        query = f"n={n}&seed={seed}" + ("" if digit is None else f"&digit={digit}")
        accept = _JSON if row % 3 == 0 else ""
        path = f"/v1/gan/sample?{query}"
        yield Payload("gan", path, "", b"", "GET", accept, "samples", n, digit=digit, seed=seed)


def _vae(pixels: NDArray[np.uint8], files: Sequence[bytes], rng: np.random.Generator) -> Iterator[Payload]:
    """Anomaly scores, twice as often as samples and reconstructions."""
    kinds = cycle(("anomaly", "samples", "anomaly", "pairs"))
    for row, kind in zip(range(POOL), kinds, strict=False):
        raw = row % 8 < 4
        body, media_type = (pixels[row % len(pixels)].tobytes(), _OCTETS) if raw else (files[row % len(files)], _PNG)
        accept = _JSON if row % 3 == 0 else ""
        if kind == "anomaly":
            yield Payload("vae", "/v1/vae/anomaly", media_type, body, kind="anomaly")
        elif kind == "pairs":
            yield Payload("vae", "/v1/vae/reconstruct", media_type, body, accept=accept, kind="pairs")
        else:
            seed = int(rng.integers(2**32))
            path = f"/v1/vae/sample?n=4&seed={seed}"
            yield Payload("vae", path, "", b"", "GET", accept, "samples", 4, seed=seed)


def _mixed(some: Sequence[bytes], others: Iterator[bytes]) -> Iterator[bytes]:
    """As many of ``some`` as of ``others``."""
    for one, other in zip(some, others, strict=False):
        yield one
        yield other


# --- real test samples -----------------------------------------------------------------------------------------


def _real_digits(rng: np.random.Generator) -> NDArray[np.uint8]:
    test = load_mnist(seed=0, smoke=False).test.x
    chosen: NDArray[np.uint8] = test[rng.permutation(len(test))[:POOL]]
    return chosen


def _real_pictures(rng: np.random.Generator) -> list[bytes]:
    """Files as they lie in the archive: reading all 60 000 for a hundred would take longer than the test."""
    file = Path(os.environ.get(DATA_DIR_VARIABLE, "")) / "cifar10-png.zip"
    if not file.is_file():
        raise DatasetError(f"{file.name} is not in the folder that {DATA_DIR_VARIABLE} names; put it there or unset it")
    with zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("test/") and name.endswith(".png"))
        return [archive.read(names[row]) for row in rng.permutation(len(names))[:POOL]]


def _real_reviews(rng: np.random.Generator) -> list[str]:
    texts = test_reviews()
    return [texts[row][0] for row in rng.permutation(len(texts))[:POOL]]


# --- forms ---------------------------------------------------------------------------------------------------


def _nested(images: Sequence[NDArray[np.uint8]]) -> bytes:
    """Write ``{"images": [[…], …]}`` without spaces."""
    return json.dumps({"images": [pixels.tolist() for pixels in images]}, separators=(",", ":")).encode()


def _base64(files: Sequence[bytes]) -> bytes:
    """Write ``{"images": ["…", …]}``, each file in base64."""
    return json.dumps({"images": [base64.b64encode(file).decode("ascii") for file in files]}).encode()
