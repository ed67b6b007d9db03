"""Scores, by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torchmetrics")

from cfal_experiments.evaluation import metrics  # noqa: E402


def test_scores_by_hand():
    """Two of three negatives and one of two positives are hit."""
    labels = np.array([0, 0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])
    scores = metrics.scores(labels, probabilities, ("negative", "positive"))
    assert scores["confusion"] == [[2, 1], [1, 1]]
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["f1_positive"] == pytest.approx(1 / 2)
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["auroc"] == pytest.approx(5 / 6)  # 5 of 6 pairs are in order
    assert scores["auroc_hard"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_class_that_is_absent_counts_as_0_and_is_not_dropped():
    scores = metrics.scores(np.array([0, 1]), np.eye(3)[:2], ("a", "b", "c"))
    assert scores["f1_macro"] == pytest.approx(2 / 3)
    assert scores["per_class"]["c"]["auroc"] is None
