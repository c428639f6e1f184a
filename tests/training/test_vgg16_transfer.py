"""VGG16's convolutions: where their weights come from, and what their images go through first."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from training.architectures.vgg16_transfer import _centred_bgr, vgg16_base
from training.datasets import DatasetError


@pytest.fixture(scope="module")
def base() -> keras.Model:
    return vgg16_base("none", 32)


def same_weights(one: keras.Model, other: keras.Model) -> bool:
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def test_it_has_thirteen_convolutions_and_no_top(base: keras.Model):
    convolutions = [layer for layer in base.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 13
    assert base.output.shape == (None, 1, 1, 512)


def test_weights_are_read_from_an_npz_of_named_arrays(base: keras.Model, tmp_path: Path):
    arrays = {
        f"{layer.name}/{part}": weight
        for layer in base.layers
        for part, weight in zip(("kernel", "bias"), layer.get_weights(), strict=False)
    }
    np.savez(tmp_path / "vgg16.npz", **arrays)
    again = vgg16_base(str(tmp_path / "vgg16.npz"), 48)
    assert same_weights(base, again)
    assert again.input.shape == (None, 48, 48, 3)


def test_weights_are_read_from_the_file_that_keras_writes(base: keras.Model, tmp_path: Path):
    base.save_weights(tmp_path / "vgg16.weights.h5")
    assert same_weights(base, vgg16_base(str(tmp_path / "vgg16.weights.h5"), 32))


def test_without_weights_they_are_drawn(base: keras.Model):
    assert not same_weights(base, vgg16_base("none", 32))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.npz", b"not weights"),
        ("cut.npz", b"PK\x03\x04 cut off"),
        ("text.h5", b"not weights"),
        ("weights.bin", b"not weights"),
    ],
)
def test_a_file_that_holds_no_weights_is_named(name: str, content: bytes, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"--base-weights .*: expected VGG16's convolutions without top, got: "):
        vgg16_base(str(path), 32)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    other = {"block1_conv1/kernel": np.zeros((5, 5, 3, 8)), "block1_conv1/bias": np.zeros(8)}
    np.savez(tmp_path / "other.npz", **other)
    with pytest.raises(DatasetError, match="expected VGG16's convolutions without top"):
        vgg16_base(str(tmp_path / "other.npz"), 32)
    np.savez(tmp_path / "none.npz", unrelated=np.zeros(3))
    with pytest.raises(DatasetError, match="block1_conv1/kernel"):
        vgg16_base(str(tmp_path / "none.npz"), 32)


def test_pixels_are_prepared_as_keras_prepares_them():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    given = keras.Input((8, 8, 3), dtype="uint8")
    prepared = keras.Model(given, _centred_bgr(given))(pixels).numpy()
    expected = keras.applications.vgg16.preprocess_input(pixels.astype(np.float32))
    np.testing.assert_allclose(prepared, expected, rtol=0, atol=1e-4)
