"""What is sent under load is what it says it is."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zipfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from loadtests.payloads import POOL, REVIEW_TOKENS, ROUTES, composed_reviews, payloads, pools, review
from serving.preprocessing.image import encode_png, to_digit
from serving.preprocessing.text import Encoder, load_vocabulary, tokenize
from tests.conftest import ROOT
from training.datasets import DatasetError

SENT = payloads()


def test_there_is_a_payload_of_every_kind_under_its_own_name():
    assert list(SENT) == [
        "digit-raw", "digit-json", "digit-png", "image-png", "sentiment-20", "sentiment-230", "sentiment-500", "gan-1",
    ]  # fmt: skip
    assert all(payload.name == name for name, payload in SENT.items())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    assert payloads(3) == payloads(3)
    changed = {name for name, payload in payloads(3).items() if payload != SENT[name]}
    assert changed == SENT.keys() - {"gan-1"}


def test_the_three_forms_of_a_digit_hold_the_same_pixels():
    raw = np.frombuffer(SENT["digit-raw"].body, np.uint8).reshape(28, 28)
    (nested,) = json.loads(SENT["digit-json"].body)["images"]
    image = Image.open(io.BytesIO(SENT["digit-png"].body))
    assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))
    assert np.array_equal(np.array(nested), raw)
    assert np.array_equal(to_digit(image), raw)
    assert raw.max() == 255
    assert raw.min() == 0


def test_the_picture_is_a_32_by_32_rgb_png_file():
    image = Image.open(io.BytesIO(SENT["image-png"].body))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
    assert len(np.unique(np.array(image))) > 100  # a picture, not a plain colour that PNG would make nothing of


@pytest.mark.parametrize("tokens", REVIEW_TOKENS)
@pytest.mark.parametrize("seed", range(3))
def test_a_review_has_exactly_as_many_tokens_as_its_name_says(tokens: int, seed: int):
    text = payloads(seed)[f"sentiment-{tokens}"].body.decode()
    assert len(tokenize(text)) == tokens


def test_the_model_knows_nearly_every_word_of_a_review():
    words = load_vocabulary((ROOT / "exported_models/imdb_lstm/1/vocabulary.txt").read_bytes())
    encoded = Encoder(words, vocabulary_size=10_000, max_tokens=500).encode(SENT["sentiment-500"].body.decode())
    assert encoded.unknown_tokens <= 0.03 * encoded.tokens


@pytest.mark.parametrize("tokens", [1, 2, 1000, 3000])
def test_a_review_of_any_length_can_be_had(tokens: int):
    assert len(tokenize(review(tokens))) == tokens


# --- pools ---------------------------------------------------------------------------------------------------

POOLS = pools(real=False)


def test_every_route_has_a_pool_of_requests_of_its_own_name():
    assert tuple(POOLS) == ROUTES
    assert all(payload.name == route for route, pool in POOLS.items() for payload in pool)
    assert {route: len(pool) for route, pool in POOLS.items()} == dict.fromkeys(ROUTES, POOL)


@pytest.mark.parametrize("route", ROUTES)
def test_the_requests_of_a_pool_differ(route: str):
    different = {(payload.path, payload.body) for payload in POOLS[route]}
    assert len(different) > 0.9 * POOL or route == "vae"
    assert len(different) > 0.7 * POOL


def test_pools_follow_from_their_seed():
    assert pools(3) == pools(3)
    assert all(POOLS[route] != pool for route, pool in pools(3).items())


def test_digits_are_sent_as_pixels_as_files_of_many_sizes_and_as_json_of_both_kinds():
    assert {len(payload.body) for payload in POOLS["digit-raw"]} == {784}
    sizes = {Image.open(io.BytesIO(payload.body)).size for payload in POOLS["digit-png"]}
    assert {(28, 28), (64, 64), (400, 400)} <= sizes
    bodies = [json.loads(payload.body)["images"] for payload in POOLS["digit-json"]]
    assert [len(images) for images in bodies] == [payload.rows for payload in POOLS["digit-json"]]
    assert {len(images) for images in bodies} == {1, 4}
    assert {type(images[0]) for images in bodies} == {str, list}
    files = [base64.b64decode(images[0]) for images in bodies if isinstance(images[0], str)]
    assert {Image.open(io.BytesIO(file)).size for file in files} == {(28, 28)}


def test_a_digit_can_be_found_on_every_file():
    for payload in POOLS["digit-png"]:
        assert to_digit(Image.open(io.BytesIO(payload.body))).max() == 255


def test_reviews_are_as_long_as_imdbs():
    words = np.array([len(text.split()) for text in composed_reviews(2000, seed=1)])
    assert np.median(words) == pytest.approx(174, rel=0.06)
    assert words.mean() == pytest.approx(230, rel=0.06)
    assert np.mean(words > 600) == pytest.approx(0.05, abs=0.02)
    assert words.min() >= 10
    assert words.max() <= 2470


def test_reviews_are_known_to_the_model_and_the_payload_tells_their_tokens():
    words = load_vocabulary((ROOT / "exported_models/imdb_lstm/1/vocabulary.txt").read_bytes())
    encoder = Encoder(words, vocabulary_size=10_000, max_tokens=500)
    for payload in POOLS["sentiment"]:
        encoded = encoder.encode(payload.body.decode())
        assert (encoded.tokens,) == payload.tokens
        assert encoded.unknown_tokens <= 0.05 * encoded.tokens + 1


def test_samples_are_asked_for_by_query_with_what_the_payload_tells():
    for payload in POOLS["gan"]:
        asked = parse_qs(urlsplit(payload.path).query)
        assert asked["n"] == [str(payload.rows)]
        assert asked["seed"] == [str(payload.seed)]
        assert asked.get("digit") == (None if payload.digit is None else [str(payload.digit)])
        assert (payload.method, payload.body) == ("GET", b"")
    assert {payload.accept for payload in POOLS["gan"]} == {"", "application/json"}


def test_the_autoencoder_is_asked_everything_it_can_do():
    assert {payload.kind for payload in POOLS["vae"]} == {"anomaly", "pairs", "samples"}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder as the real one, with what our own code draws: pictures and texts that no pool has otherwise."""
    marked = np.full((140, 28, 28), 77, np.uint8)
    labels = np.zeros(140, np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=marked[:1], y_train=labels[:1], x_test=marked, y_test=labels)
    with zipfile.ZipFile(tmp_path / "cifar10-png.zip", "w") as archive:
        for number in range(140):
            archive.writestr(f"train/ship/{number}.png", b"not to be sent")
            archive.writestr(f"test/ship/{number}.png", encode_png(np.full((32, 32, 3), number, np.uint8)))
    lines = [
        json.dumps({"text": f"Test {n}.", "label": 1, "split": part}) for n in range(140) for part in ("test", "train")
    ]
    (tmp_path / "imdb_reviews.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    monkeypatch.setenv("SEXTANT_DATA_DIR", str(tmp_path))
    return tmp_path


def test_real_test_samples_are_sent_when_asked_for(data: Path):
    found = pools(real=True)
    assert {payload.body for payload in found["digit-raw"]} == {bytes([77]) * 784}
    pictures = {Image.open(io.BytesIO(payload.body)).getpixel((0, 0)) for payload in found["image"]}
    assert len(pictures) == POOL
    assert all(payload.body.startswith(b"Test ") and payload.tokens == (2,) for payload in found["sentiment"])
    assert {route: len(pool) for route, pool in found.items()} == dict.fromkeys(ROUTES, POOL)


@pytest.mark.parametrize("name", ["mnist.npz", "cifar10-png.zip", "imdb_reviews.jsonl.gz"])
def test_missing_data_is_named(data: Path, name: str):
    (data / name).unlink()
    with pytest.raises(DatasetError, match=name):
        pools(real=True)
