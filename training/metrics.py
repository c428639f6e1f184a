"""Figures of an evaluation: accuracy and confusion, area under the ROC curve."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serving.manifest import Metric
from training.architecture import Evaluation
from training.datasets import Dataset


def classification(answers: NDArray[np.int64], truth: NDArray[np.uint8], data: Dataset) -> Evaluation:
    """Accuracy and confusion matrix of class indices (n,) against the test labels (n,)."""
    classes = len(data.labels)
    confusion = np.bincount(truth.astype(np.int64) * classes + answers, minlength=classes**2)
    accuracy = Metric(value=float(np.mean(answers == truth)), data=f"{data.name} test set, {len(truth)} rows")
    return Evaluation({"test_accuracy": accuracy}, confusion=confusion.reshape(classes, classes))


def auroc(ordinary: NDArray[np.float64], strange: NDArray[np.float64]) -> float:
    """Probability that a strange row scores above an ordinary one, ties counting half (Mann-Whitney U).

    Args:
        ordinary, strange: scores (n,) and (m,), larger meaning stranger.
    """
    values, inverse, counts = np.unique(np.concatenate([ordinary, strange]), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each distinct value, from 1
    rank_sum = ranks[inverse[len(ordinary) :]].sum()
    n, m = len(ordinary), len(strange)
    del values
    return float((rank_sum - m * (m + 1) / 2) / (n * m))
