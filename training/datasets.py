"""The three datasets: from files in ``$SEXTANT_DATA_DIR``, from the ``keras.datasets`` download, or synthetic.

Files are read with numpy and Pillow, not through Keras' cache: that deletes a file whose hash it does not know.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from serving.preprocessing.text import OFFSET, START, UNKNOWN, Encoder
from training import synthetic

DATA_DIR_VARIABLE = "SEXTANT_DATA_DIR"
CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGIT_LABELS = tuple("0123456789")
SENTIMENT_LABELS = ("negative", "positive")
SYNTHETIC_ROWS = 1500


class DatasetError(RuntimeError):
    """The data is neither in the data folder nor to be downloaded."""


@dataclass(frozen=True)
class Split:
    """Inputs and labels of the same length.

    Attributes:
        x: uint8 (n, height, width) or (n, height, width, 3); or n int32 rows of token ids of their own lengths.
        y: uint8 (n,), index into the labels.
    """

    x: Any
    y: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Split:
        """The given rows, in the given order."""
        if isinstance(self.x, np.ndarray):
            return Split(self.x[rows], self.y[rows])
        return Split([self.x[row] for row in rows], self.y[rows])


@dataclass(frozen=True)
class Dataset:
    """Data for one run; ``test`` is the official test set and takes no part in training or choosing."""

    name: str
    sha256: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    words: tuple[str, ...] = ()


def load_mnist(*, seed: int, smoke: bool) -> Dataset:
    """MNIST: uint8 (n, 28, 28), white ink on black; 55,000 to train, 5,000 to validate, 10,000 to test."""
    if smoke:
        x, y = synthetic.digits(SYNTHETIC_ROWS, seed)
        return _synthetic("drawn digits", DIGIT_LABELS, x, y, seed)
    file = _data_file("mnist.npz")
    if file is not None:
        with np.load(file) as arrays:
            train, test = (Split(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test"))
    else:
        import keras  # noqa: PLC0415 - slow, and needed for the download only

        train, test = _split_pairs(_download("MNIST", keras.datasets.mnist.load_data, ["mnist.npz"]))
    return _with_validation("MNIST", DIGIT_LABELS, train, test, held_out=5000, seed=seed)


def load_cifar10(*, seed: int, smoke: bool, train_per_class: int | None = None) -> Dataset:
    """CIFAR-10: uint8 RGB (n, 32, 32, 3); 45,000 to train, 5,000 to validate, 10,000 to test.

    With ``train_per_class`` the training set is cut to that many images a class first, of which a tenth validates.
    """
    if smoke:
        x, y = synthetic.objects(SYNTHETIC_ROWS, seed)
        return _synthetic("drawn objects", CIFAR10_LABELS, x, y, seed)
    file = _data_file("cifar10-png.zip")
    if file is not None:
        train, test = _read_cifar10(file)
    else:
        import keras  # noqa: PLC0415 - slow, and needed for the download only

        pairs = _download("CIFAR-10", keras.datasets.cifar10.load_data, ["cifar10-png.zip"])
        train, test = _split_pairs(pairs)
    name = "CIFAR-10"
    if train_per_class is not None:
        generator = np.random.default_rng(seed)
        rows = [generator.permutation(np.flatnonzero(train.y == label))[:train_per_class] for label in range(10)]
        train = train.take(np.concatenate(rows))
        name = f"CIFAR-10, {train_per_class} training images a class"
    return _with_validation(name, CIFAR10_LABELS, train, test, held_out=len(train) // 10, seed=seed)


def load_imdb(*, seed: int, smoke: bool, vocabulary_size: int, max_tokens: int) -> Dataset:
    """IMDB reviews as rows of token ids: 22,500 to train, 2,500 to validate, 25,000 to test.

    From the data folder the raw text goes through :class:`serving.preprocessing.text.Encoder`; the Keras download
    holds ids only, made by the same rules. ``words`` are the most frequent ``vocabulary_size`` words.
    """
    if smoke:
        texts, y, words = synthetic.reviews(SYNTHETIC_ROWS, seed)
        encode = Encoder(words, vocabulary_size, max_tokens).encode
        data = _synthetic("composed reviews", SENTIMENT_LABELS, [encode(text).ids for text in texts], y, seed)
        return replace(data, words=tuple(words))
    reviews, index = _data_file("imdb_reviews.jsonl.gz"), _data_file("imdb_word_index.json")
    if reviews is not None and index is not None:
        words = _frequent_words(json.loads(index.read_text("utf-8")), vocabulary_size)
        train, test = _read_imdb(reviews, Encoder(words, vocabulary_size, max_tokens))
    else:
        import keras  # noqa: PLC0415 - slow, and needed for the download only

        files = ["imdb_reviews.jsonl.gz", "imdb_word_index.json"]
        pairs, ranks = _download(
            "IMDB",
            lambda: (
                keras.datasets.imdb.load_data(
                    num_words=vocabulary_size, start_char=START, oov_char=UNKNOWN, index_from=OFFSET
                ),
                keras.datasets.imdb.get_word_index(),
            ),
            files,
        )
        words = _frequent_words(ranks, vocabulary_size)
        train, test = (
            Split([np.array(row[-max_tokens:], np.int32) for row in x], np.asarray(y, np.uint8)) for x, y in pairs
        )
    data = _with_validation("IMDB", SENTIMENT_LABELS, train, test, held_out=2500, seed=seed)
    return replace(data, words=tuple(words))


def test_reviews() -> list[tuple[str, int]]:
    """The raw text and label of the 25,000 IMDB test reviews, in their original order.

    Raises:
        DatasetError: there is no data folder; the Keras download holds no text.
    """
    file = _data_file("imdb_reviews.jsonl.gz")
    if file is None:
        message = f"raw reviews are only in imdb_reviews.jsonl.gz; set {DATA_DIR_VARIABLE} to the folder that holds it"
        raise DatasetError(message)
    return [(review["text"], review["label"]) for review in _read_reviews(file) if review["split"] == "test"]


def sampled_rows(rows: int) -> NDArray[np.int64]:
    """Up to 2,000 test rows, always the same: enough to send over HTTP where all would take too long."""
    return np.random.default_rng(0).permutation(rows)[:2000]


def _data_file(name: str) -> Path | None:
    folder = os.environ.get(DATA_DIR_VARIABLE)
    if not folder:
        return None
    path = Path(folder) / name
    if not path.is_file():
        message = f"{DATA_DIR_VARIABLE} is {folder!r}, and {name} is not in it; put it there or unset the variable"
        raise DatasetError(message)
    return path


def _download(name: str, load: Callable[[], Any], files: Sequence[str]) -> Any:  # noqa: ANN401
    try:
        return load()
    except Exception as error:  # Keras raises whatever its transport does
        message = (
            f"{name} could not be downloaded ({error}). Set {DATA_DIR_VARIABLE} to a folder that holds "
            f"{' and '.join(files)}, or try again with a network."
        )
        raise DatasetError(message) from error


def _split_pairs(pairs: Iterable[tuple[Any, Any]]) -> list[Split]:
    return [Split(np.asarray(x), np.asarray(y, np.uint8).reshape(-1)) for x, y in pairs]


def _read_cifar10(file: Path) -> tuple[Split, Split]:
    with zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        splits = []
        for part in ("train", "test"):
            chosen = [name for name in names if name.startswith(part + "/")]
            images = np.stack(
                [
                    np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
                    for name in tqdm(chosen, desc=f"CIFAR-10 {part}", unit=" images", leave=False, disable=None)
                ]
            )
            labels = np.array([CIFAR10_LABELS.index(name.split("/")[1]) for name in chosen], np.uint8)
            splits.append(Split(images, labels))
    return splits[0], splits[1]


def _read_reviews(file: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in tqdm(lines, desc="IMDB", total=50_000, unit=" reviews", leave=False, disable=None):
            yield json.loads(line)


def _read_imdb(file: Path, encoder: Encoder) -> tuple[Split, Split]:
    rows: dict[str, list[tuple[NDArray[np.int32], int]]] = {"train": [], "test": []}
    for review in _read_reviews(file):
        rows[review["split"]].append((encoder.encode(review["text"]).ids, review["label"]))
    train, test = (
        Split([ids for ids, _ in part], np.array([label for _, label in part], np.uint8)) for part in rows.values()
    )
    return train, test


def _frequent_words(ranks: dict[str, int], count: int) -> list[str]:
    return sorted(ranks, key=ranks.__getitem__)[:count]


def _with_validation(
    name: str, labels: tuple[str, ...], train: Split, test: Split, *, held_out: int, seed: int
) -> Dataset:
    order = np.random.default_rng(seed).permutation(len(train))
    return Dataset(
        name=name,
        sha256=_digest(train, test),
        labels=labels,
        train=train.take(order[held_out:]),
        validation=train.take(order[:held_out]),
        test=test,
    )


def _synthetic(name: str, labels: tuple[str, ...], x: Any, y: NDArray[np.uint8], seed: int) -> Dataset:  # noqa: ANN401
    rows, held_out = Split(x, y), len(y) // 5
    order = np.arange(len(rows))
    return _with_validation(
        f"synthetic ({name})",
        labels,
        rows.take(order[held_out:]),
        rows.take(order[:held_out]),
        held_out=held_out,
        seed=seed,
    )


def _digest(*splits: Split) -> str:
    """The sha256 of the arrays, inputs then labels, in their original order."""
    digest = hashlib.sha256()
    for split in splits:
        for row in [split.x] if isinstance(split.x, np.ndarray) else split.x:
            digest.update(np.ascontiguousarray(row).tobytes())
        digest.update(split.y.tobytes())
    return digest.hexdigest()
