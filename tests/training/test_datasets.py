"""The three data sets: from files, from the download, and what is said when there is neither."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from serving.preprocessing.text import OFFSET, START, UNKNOWN, tokenize
from training.datasets import CIFAR10_LABELS, Dataset, DatasetError, Split, load_cifar10, load_imdb, load_mnist

MNIST_ROWS, CIFAR10_ROWS, REVIEWS = 5_060, 8, 2_540  # just above what is held out
WORDS = ("the", "film", "was", "good", "bad", "it's", "rare")
RARE = "rare"
MAX_TOKENS = 12
VOCABULARY_SIZE = len(WORDS) - 1 + OFFSET + 1  # one row too few for the last word


def numbered(count: int, first: int, *shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images that carry their number in the first two bytes."""
    images = np.zeros((count, *shape), np.uint8)
    numbers = np.arange(first, first + count)
    flat = images.reshape(count, -1)
    flat[:, 0], flat[:, 1] = numbers >> 8, numbers & 255
    return images


def numbers(split: Split) -> list[int]:
    """The numbers of a split's images."""
    flat = split.x.reshape(len(split), -1)
    return (flat[:, 0].astype(int) * 256 + flat[:, 1]).tolist()


def review(number: int) -> str:
    """A text that says its number and its label, as IMDB's reviews are written."""
    verdict = "Good" if number % 2 else "BAD"
    ones = " film" * (number % 7)
    return f"{verdict}!<br /><br />It's{ones}; the rare, unseen-word {'was ' * (number // 7 % 20)}"


def reviews(part: str) -> Iterable[tuple[str, int]]:
    first = 0 if part == "train" else REVIEWS
    return ((review(number), number % 2) for number in range(first, first + (REVIEWS if part == "train" else 30)))


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder with every file."""
    folder = tmp_path_factory.mktemp("data")
    np.savez_compressed(
        folder / "mnist.npz",
        x_train=numbered(MNIST_ROWS, 0, 28, 28),
        y_train=np.uint8(np.arange(MNIST_ROWS) % 10),
        x_test=numbered(20, 60_000, 28, 28),
        y_test=np.uint8(np.arange(20) % 10),
    )
    with zipfile.ZipFile(folder / "cifar10-png.zip", "w") as archive:
        archive.writestr("README.md", "not an image")
        for part, count in (("train", CIFAR10_ROWS), ("test", 2)):
            for index, label in enumerate(reversed(CIFAR10_LABELS)):
                images = numbered(count, 100 * index + (0 if part == "train" else 50), 32, 32, 3)
                images[:, 5:, :, 2] = CIFAR10_LABELS.index(label)  # blue tells the class
                for name, pixels in enumerate(images):
                    archive.writestr(f"{part}/{label}/{name:04}.png", png(pixels))
    with gzip.open(folder / "imdb_reviews.jsonl.gz", "wt", encoding="utf-8") as lines:
        for part in ("test", "train"):
            for text, label in reviews(part):
                lines.write(json.dumps({"split": part, "label": label, "text": text}) + "\n")
    ranks = {word: rank for rank, word in enumerate(WORDS, 1)}
    (folder / "imdb_word_index.json").write_text(json.dumps(dict(sorted(ranks.items()))))
    return folder


@pytest.fixture
def data_dir(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEXTANT_DATA_DIR", str(folder))


@pytest.fixture
def no_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEXTANT_DATA_DIR", raising=False)


def imdb(seed: int = 0) -> Dataset:
    return load_imdb(seed=seed, smoke=False, vocabulary_size=VOCABULARY_SIZE, max_tokens=MAX_TOKENS)


@pytest.mark.usefixtures("data_dir")
class TestFiles:
    def test_mnist_is_read_and_validation_taken_from_its_training_set(self):
        data = load_mnist(seed=0, smoke=False)
        assert data.name == "MNIST"
        assert data.labels == tuple("0123456789")
        assert (data.train.x.shape, data.validation.x.shape) == ((60, 28, 28), (5000, 28, 28))
        assert (data.train.x.dtype, data.train.y.dtype) == (np.uint8, np.uint8)
        train, validation = numbers(data.train), numbers(data.validation)
        assert sorted(train + validation) == list(range(MNIST_ROWS)), "no row is lost, none is in both"
        assert numbers(data.test) == list(range(60_000, 60_020)), "the test set is whole and in its own order"
        for split in (data.train, data.validation):
            assert (split.y == np.array(numbers(split)) % 10).all(), "labels go with their images"

    def test_the_seed_decides_the_validation_rows(self):
        one, same, other = (load_mnist(seed=seed, smoke=False) for seed in (1, 1, 2))
        assert numbers(one.train) == numbers(same.train) != numbers(other.train)
        assert one.sha256 == same.sha256 == other.sha256, "the digest is of the data, not of its split"

    def test_cifar10_is_read_with_its_labels_in_the_official_order(self):
        data = load_cifar10(seed=0, smoke=False)
        assert data.labels[:3] == ("airplane", "automobile", "bird")
        assert data.train.x.shape == (72, 32, 32, 3)
        assert (len(data.validation), len(data.test)) == (8, 20)
        for split in (data.train, data.validation, data.test):
            assert (split.x[:, 20, 20, 2] == split.y).all()
            assert split.y.shape == (len(split),)
        assert not set(numbers(data.train)) & set(numbers(data.validation))
        assert all(number % 100 >= 50 for number in numbers(data.test))

    def test_a_smaller_training_set_is_balanced_and_says_so(self):
        data = load_cifar10(seed=0, smoke=False, train_per_class=3)
        kept = np.concatenate([data.train.y, data.validation.y])
        assert np.bincount(kept, minlength=10).tolist() == [3] * 10
        assert len(data.validation) == 3
        assert "3 training images a class" in data.name
        assert len(data.test) == 20
        whole = load_cifar10(seed=0, smoke=False)
        assert data.sha256 != whole.sha256

    def test_raw_reviews_are_encoded_as_serving_encodes_them(self):
        data = imdb()
        assert data.labels == ("negative", "positive")
        assert data.words == WORDS, "most frequent first, whatever the file's order"
        assert (len(data.train), len(data.validation), len(data.test)) == (40, 2500, 30)
        for row, (text, label), y in zip(data.test.x, reviews("test"), data.test.y, strict=True):
            known = {word: rank + OFFSET for rank, word in enumerate(WORDS[:-1], 1)}
            expected = [START, *(known.get(word, UNKNOWN) for word in tokenize(text))][-MAX_TOKENS:]
            assert row.tolist() == expected
            assert row.dtype == np.int32
            assert y == label
        assert max(row.max() for row in data.train.x) < VOCABULARY_SIZE

    def test_reviews_of_training_and_validation_are_apart(self):
        one, other = imdb(seed=0), imdb(seed=1)
        parts = [row.tolist() for row in (*one.train.x, *one.validation.x)]
        assert sorted(parts) == sorted(row.tolist() for row in (*other.train.x, *other.validation.x))
        assert [row.tolist() for row in one.train.x] != [row.tolist() for row in other.train.x]

    @pytest.mark.parametrize(
        ("load", "missing"),
        [
            (lambda: load_mnist(seed=0, smoke=False), "mnist.npz"),
            (lambda: load_cifar10(seed=0, smoke=False), "cifar10-png.zip"),
            (imdb, "imdb_reviews.jsonl.gz"),
        ],
    )
    def test_a_missing_file_is_named_with_the_variable(
        self, load: Callable[[], Dataset], missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("SEXTANT_DATA_DIR", str(tmp_path))
        with pytest.raises(DatasetError) as caught:
            load()
        for part in ("SEXTANT_DATA_DIR", str(tmp_path), missing):
            assert part in str(caught.value)

    def test_a_missing_word_index_is_named_too(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        (tmp_path / "imdb_reviews.jsonl.gz").symlink_to(folder / "imdb_reviews.jsonl.gz")
        monkeypatch.setenv("SEXTANT_DATA_DIR", str(tmp_path))
        with pytest.raises(DatasetError, match=r"SEXTANT_DATA_DIR.*imdb_word_index\.json"):
            imdb()


@pytest.mark.usefixtures("no_data_dir")
class TestDownload:
    def test_mnist_is_the_same_as_from_the_file(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("keras.src.datasets.mnist.get_file", lambda **_: str(folder / "mnist.npz"))
        downloaded = load_mnist(seed=0, smoke=False)
        monkeypatch.setenv("SEXTANT_DATA_DIR", str(folder))
        read = load_mnist(seed=0, smoke=False)
        assert downloaded.sha256 == read.sha256
        assert numbers(downloaded.train) == numbers(read.train)

    def test_cifar10_labels_lose_their_second_axis(self, monkeypatch: pytest.MonkeyPatch):
        def as_keras_does() -> tuple[tuple[object, ...], ...]:
            pixels, labels = numbered(40, 0, 32, 32, 3), np.uint8(np.arange(40) % 10)[:, None]
            return (pixels, labels), (pixels[:10] + 1, labels[:10])

        monkeypatch.setattr(keras.datasets.cifar10, "load_data", as_keras_does)
        data = load_cifar10(seed=0, smoke=False)
        assert (data.train.x.shape, data.validation.x.shape, data.test.x.shape) == (
            (36, 32, 32, 3),
            (4, 32, 32, 3),
            (10, 32, 32, 3),
        )
        assert data.test.y.tolist() == list(range(10))
        assert data.train.y.shape == (36,)
        assert data.train.y.dtype == np.uint8

    def test_imdb_ids_are_those_of_the_raw_text(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Keras' own loader, on a file as Keras keeps it: ranks, to which it adds the offset and the markers."""
        ranks = {word: rank for rank, word in enumerate(WORDS, 1)} | {"unseen": 98, "word": 99, "br": 100}
        arrays = {}
        for part in ("train", "test"):
            rows = [[ranks[word] for word in tokenize(text)] for text, _ in reviews(part)]
            arrays[f"x_{part}"] = np.array(rows, dtype=object)
            arrays[f"y_{part}"] = np.array([label for _, label in reviews(part)])
        np.savez(tmp_path / "imdb.npz", **arrays)
        files = {"imdb.npz": tmp_path / "imdb.npz", "imdb_word_index.json": folder / "imdb_word_index.json"}
        monkeypatch.setattr("keras.src.datasets.imdb.get_file", lambda fname, **_: str(files[fname]))
        downloaded = imdb()
        monkeypatch.setenv("SEXTANT_DATA_DIR", str(folder))
        read = imdb()
        assert downloaded.words == read.words
        for one, other in ((downloaded.test, read.test), (downloaded.validation, read.validation)):
            assert len(one) == len(other)
        assert pairs(downloaded.test) == pairs(read.test)
        assert sorted(pairs(downloaded.train) + pairs(downloaded.validation)) == sorted(
            pairs(read.train) + pairs(read.validation)
        )
        assert downloaded.train.x[0].dtype == np.int32

    @pytest.mark.parametrize(
        ("module", "load", "files"),
        [
            ("mnist", lambda: load_mnist(seed=0, smoke=False), ["mnist.npz"]),
            ("cifar10", lambda: load_cifar10(seed=0, smoke=False), ["cifar10-png.zip"]),
            ("imdb", imdb, ["imdb_reviews.jsonl.gz", "imdb_word_index.json"]),
        ],
    )
    def test_without_a_network_the_way_out_is_told(
        self, module: str, load: Callable[[], Dataset], files: list[str], monkeypatch: pytest.MonkeyPatch
    ):
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("URL fetch failure: Name or service not known")

        monkeypatch.setattr(getattr(keras.datasets, module), "load_data", fail)
        with pytest.raises(DatasetError) as caught:
            load()
        for part in ("SEXTANT_DATA_DIR", *files, "Name or service not known"):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)


def pairs(split: Split) -> list[tuple[list[int], int]]:
    """Rows with their labels, in an order of their own."""
    return sorted((row.tolist(), int(label)) for row, label in zip(split.x, split.y, strict=True))


def test_synthetic_data_needs_neither(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEXTANT_DATA_DIR", "/nowhere")
    monkeypatch.setattr(keras, "datasets", SimpleNamespace())
    data = load_mnist(seed=0, smoke=True)
    assert data.name.startswith("synthetic")
    assert (len(data.train), len(data.validation), len(data.test)) == (900, 300, 300)
