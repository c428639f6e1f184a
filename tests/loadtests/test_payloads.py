"""What is sent under load is what it says it is."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from loadtests.payloads import REVIEW_TOKENS, payloads, review
from serving.preprocessing.image import to_digit
from serving.preprocessing.text import Encoder, load_vocabulary, tokenize
from tests.conftest import ROOT

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
