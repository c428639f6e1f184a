"""Figures of an evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.datasets import Dataset, Split
from training.metrics import auroc, classification

scores = st.lists(st.integers(-3, 3), min_size=1, max_size=12)  # few values, so that many are tied


@given(scores, scores)
def test_auroc_is_the_share_of_pairs_in_the_right_order(ordinary: list[int], strange: list[int]):
    pairs = [(a < b) + (a == b) / 2 for a in ordinary for b in strange]
    found = auroc(np.array(ordinary, np.float64), np.array(strange, np.float64))
    assert found == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auroc_of_a_perfect_a_reversed_and_a_blind_score():
    low, high = np.arange(5.0), np.arange(5.0) + 10
    assert (auroc(low, high), auroc(high, low), auroc(low, low)) == (1.0, 0.0, 0.5)


def test_classification_counts_true_rows_and_answered_columns():
    nothing = Split(np.zeros((0, 1)), np.zeros(0, np.uint8))
    data = Dataset("made up", "0" * 64, ("a", "b", "c"), nothing, nothing, nothing)
    truth, answers = np.array([0, 0, 1, 2, 2, 2], np.uint8), np.array([0, 1, 1, 2, 2, 0])
    found = classification(answers, truth, data)
    assert found.confusion is not None
    assert found.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert found.metrics["test_accuracy"].value == pytest.approx(4 / 6)
    assert found.metrics["test_accuracy"].data == "made up test set, 6 rows"
