"""Synthetic data: seeded, shaped as the real data sets, and learnable."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.preprocessing.text import tokenize
from training.synthetic import DEFAULT_FONT, digits, draw_digit, fonts, objects, reviews


def linear_accuracy(
    train: NDArray[Any], train_labels: NDArray[Any], test: NDArray[Any], test_labels: NDArray[Any]
) -> float:
    """Accuracy of ridge regression on one-hot labels: what even the plainest learner gets."""

    def features(rows: NDArray[Any]) -> NDArray[np.float64]:
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        return np.hstack([flat / (flat.max() or 1.0), np.ones((len(rows), 1))])

    known = features(train)
    gram = known @ known.T + 10.0 * np.eye(len(known))
    weights = known.T @ np.linalg.solve(gram, np.eye(int(train_labels.max()) + 1)[train_labels])
    return float(((features(test) @ weights).argmax(axis=1) == test_labels).mean())


class TestDrawDigit:
    def test_ink_is_dark_on_light_paper(self) -> None:
        pixels = np.asarray(draw_digit(3))
        assert pixels.shape == (280, 280)
        assert (pixels.min(), pixels.max(), np.median(pixels)) == (0, 255, 255)

    @pytest.mark.parametrize("font", fonts())
    def test_every_font_draws_ten_different_digits_of_the_height_asked(self, font: str) -> None:
        drawn = [np.asarray(draw_digit(digit, font=font, height=0.5)) for digit in range(10)]
        assert len({pixels.tobytes() for pixels in drawn}) == 10
        rows = np.flatnonzero((drawn[0] < 128).any(axis=1))
        assert abs(np.ptp(rows) + 1 - 140) <= 3

    def test_the_digit_stands_where_it_is_put(self) -> None:
        rows, columns = np.nonzero(np.asarray(draw_digit(0, size=(400, 200), height=0.4, shift=(0.2, -0.1))) < 128)
        assert abs((rows.min() + rows.max() + 1) / 2 - 80) <= 1
        assert abs((columns.min() + columns.max() + 1) / 2 - 280) <= 1

    def test_a_broader_pen_leaves_more_ink(self) -> None:
        assert np.asarray(draw_digit(7, pen=5)).sum() < np.asarray(draw_digit(7)).sum()

    def test_a_turned_one_leans(self) -> None:
        def lean(angle: float) -> float:
            rows, columns = np.nonzero(np.asarray(draw_digit(1, angle=angle)) < 128)
            return float(np.cov(rows, columns)[0, 1])

        assert lean(15) > lean(0) > lean(-15)

    def test_an_unknown_font_is_named(self) -> None:
        with pytest.raises(ValueError, match=rf"Unknown font 'Comic'; expected one of {DEFAULT_FONT}"):
            draw_digit(1, font="Comic")


@pytest.mark.parametrize("make", [digits, objects, reviews])
class TestSeeds:
    def test_the_same_seed_gives_the_same_data(self, make: Callable[[int, int], tuple[Any, ...]]) -> None:
        for one, other in zip(make(30, 5), make(30, 5), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_another_seed_gives_other_data(self, make: Callable[[int, int], tuple[Any, ...]]) -> None:
        assert not np.array_equal(make(30, 5)[0], make(30, 6)[0])

    def test_classes_are_evenly_spread(self, make: Callable[[int, int], tuple[Any, ...]]) -> None:
        labels = make(200, 0)[1]
        assert labels.dtype == np.uint8
        assert len(set(np.bincount(labels).tolist())) == 1


class TestDigits:
    def test_they_look_as_mnist_does(self) -> None:
        pixels, _ = digits(100, seed=1)
        assert pixels.shape == (100, 28, 28)
        assert pixels.dtype == np.uint8
        assert (pixels.max(axis=(1, 2)) == 255).all()
        # White on black, within the margin of four pixels that centring by mass moves a little.
        assert (pixels[:, [0, -1]] == 0).all()
        assert 0.05 < (pixels > 127).mean() < 0.25

    def test_they_can_be_told_apart(self) -> None:
        assert linear_accuracy(*digits(800, seed=2), *digits(200, seed=3)) > 0.9


class TestObjects:
    def test_they_are_noisy_pictures_in_colour(self) -> None:
        pixels, _ = objects(50, seed=1)
        assert pixels.shape == (50, 32, 32, 3)
        assert pixels.dtype == np.uint8
        assert (pixels.std(axis=(1, 2)) > 5).all()

    def test_they_can_be_told_apart(self) -> None:
        assert linear_accuracy(*objects(800, seed=2), *objects(200, seed=3)) > 0.8


class TestReviews:
    def test_lengths_are_mixed(self) -> None:
        texts, _, _ = reviews(300, seed=1)
        lengths = [len(text.split()) for text in texts]
        assert min(lengths) < 10
        assert max(lengths) > 400
        assert all(5 <= length <= 600 for length in lengths)

    def test_they_hold_what_real_reviews_hold(self) -> None:
        text = " ".join(reviews(100, seed=1)[0])
        for expected in ("<br /><br />", r"n't\b", r"\bI\b", r"\d+/10", r"\(", r"!"):
            assert re.search(expected, text), expected

    def test_every_word_is_listed_most_frequent_first(self) -> None:
        texts, _, words = reviews(100, seed=1)
        counts = Counter(word for text in texts for word in tokenize(text))
        assert sorted(words) == sorted(counts)
        ordered = [counts[word] for word in words]
        assert ordered == sorted(ordered, reverse=True)

    def test_words_alone_tell_the_label(self) -> None:
        texts, labels, words = reviews(600, seed=2)
        counts = np.array([np.bincount([words.index(w) for w in tokenize(t)], minlength=len(words)) for t in texts])
        assert linear_accuracy(counts[:400], labels[:400], counts[400:], labels[400:]) > 0.8
