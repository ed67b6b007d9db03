"""Scores of predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score


def scores(
    target: np.ndarray, probabilities: np.ndarray, minority: Sequence[int]
) -> dict[str, float]:
    """Scores of the most probable class, each between 0 and 1.

    Args:
        target: `[N]` true classes.
        probabilities: `[N, C]`.
        minority: the rare classes; their recalls are averaged.

    Returns:
        macro F1, minority recall, accuracy and balanced accuracy; with two classes also the F1 of
        class 1. A class without samples or predictions counts as 0, it is not dropped.
    """
    classes = range(probabilities.shape[1])
    predicted = probabilities.argmax(axis=1)
    recalls = recall_score(target, predicted, labels=classes, average=None, zero_division=0)
    result = {
        "macro F1": f1_score(target, predicted, labels=classes, average="macro", zero_division=0),
        "minority recall": recalls[list(minority)].mean(),
        "accuracy": accuracy_score(target, predicted),
        "balanced accuracy": recalls.mean(),
    }
    if len(classes) == 2:
        result["positive F1"] = f1_score(target, predicted, pos_label=1, zero_division=0)
    return {name: float(value) for name, value in result.items()}
