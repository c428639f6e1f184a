"""Random changes of training images."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from training import synthetic
from training.augmentation import Augmentation, batches
from training.datasets import Split

EVERYTHING = Augmentation(shift=2, rotate=12, zoom=0.12, shear=0.12, flip=True, fill="reflect")


@pytest.fixture(autouse=True)
def seed() -> None:
    tf.keras.utils.set_random_seed(3)


def noise(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (31, 20, 3)])
@pytest.mark.parametrize("augmentation", [Augmentation(), EVERYTHING])
def test_shape_and_dtype_are_kept(augmentation: Augmentation, shape: tuple[int, ...]):
    changed = augmentation(noise(5, *shape))
    assert changed.shape == (5, *shape)
    assert changed.dtype == tf.uint8


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_nothing_asked_is_nothing_changed(shape: tuple[int, ...]):
    images = noise(5, *shape)
    np.testing.assert_array_equal(Augmentation()(images).numpy(), images)


def test_flip_mirrors_about_half_of_the_images_left_to_right():
    images = noise(64, 9, 8, 3)
    changed = Augmentation(flip=True)(images).numpy()
    same = (changed == images).all(axis=(1, 2, 3))
    mirrored = (changed == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 10 < mirrored.sum() < 54


def test_shift_moves_whole_pixels_within_its_bound_and_fills_with_black():
    images = noise(64, 12, 12, 1)
    changed = Augmentation(shift=2)(images).numpy()
    found = set()
    for image, moved in zip(images, changed, strict=True):
        around = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        offsets = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if (around[down : down + 12, right : right + 12] == moved).all()
        ]
        assert len(offsets) == 1
        found |= set(offsets)
    assert {down for down, _ in found} == {right for _, right in found} == set(range(5))


def test_reflecting_lets_no_black_in():
    white = np.full((16, 12, 12, 3), 255, np.uint8)
    assert Augmentation(shift=3, rotate=20, fill="reflect")(white).numpy().min() == 255
    assert Augmentation(shift=3, rotate=20)(white).numpy().min() == 0


@pytest.mark.parametrize(("change", "spread"), [({"rotate": 20}, 0.03), ({"zoom": 0.2}, 0.03), ({"shear": 0.2}, 0.03)])
def test_each_change_changes_about_the_middle(change: dict[str, float], spread: float):
    images = np.zeros((32, 29, 29, 1), np.uint8)
    images[:, 8:21, 12:17] = 255
    changed = Augmentation(**change)(images).numpy().astype(float)
    assert len(np.unique(changed, axis=0)) > 16, "every image is changed in its own way"
    mass = changed.sum(axis=(1, 2, 3))
    for axis in (1, 2):
        other = 3 - axis
        centre = (changed.sum(axis=(other, 3)) * np.arange(29)).sum(axis=1) / mass
        assert np.abs(centre - 14).max() < spread * 29 / 2


def test_zoom_changes_size_both_ways():
    images = np.zeros((64, 29, 29, 1), np.uint8)
    images[:, 8:21, 8:21] = 255
    areas = Augmentation(zoom=0.2)(images).numpy().sum(axis=(1, 2, 3)) / (255 * 13 * 13)
    assert 0.6 < areas.min() < 0.85
    assert 1.15 < areas.max() < 1.5


class TestBatches:
    def split(self) -> Split:
        return Split(*synthetic.digits(50, seed=0))

    def test_without_augmentation_rows_come_as_they_are_and_in_order(self):
        split = self.split()
        pixels, labels = zip(*batches(split, 16, seed=0).as_numpy_iterator(), strict=True)
        assert [len(batch) for batch in pixels] == [16, 16, 16, 2]
        np.testing.assert_array_equal(np.concatenate(pixels), split.x)
        np.testing.assert_array_equal(np.concatenate(labels), split.y)

    def test_with_augmentation_rows_keep_their_labels_in_another_order_each_epoch(self):
        split = self.split()
        data = batches(split, 16, seed=0, augmentation=Augmentation())
        orders = []
        for _ in range(2):
            pixels, labels = (np.concatenate(part) for part in zip(*data.as_numpy_iterator(), strict=True))
            rows = [int(np.flatnonzero((split.x == image).all(axis=(1, 2)))[0]) for image in pixels]
            assert sorted(rows) == list(range(50))
            np.testing.assert_array_equal(labels, split.y[rows])
            orders.append(rows)
        assert orders[0] != orders[1] != list(range(50))

    def test_grey_and_coloured_images_keep_their_shape(self):
        for split in (self.split(), Split(*synthetic.objects(20, seed=0))):
            pixels, _ = next(batches(split, 8, seed=0, augmentation=EVERYTHING).as_numpy_iterator())
            assert pixels.shape == (8, *split.x.shape[1:])
            assert pixels.dtype == np.uint8
