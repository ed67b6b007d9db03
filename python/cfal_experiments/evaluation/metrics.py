"""Scores of predictions, each defined once.

A class without samples and without predictions counts as 0 in every macro average; it is not
dropped, so that two systems with the same number are comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, roc_auc_score

BINS = 15  # of the calibration error

#: Scores of a table, in order, with their headings.
HEADLINES = {
    "f1_macro": "macro F1",
    "f1_positive": "positive F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
}


def scores(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], positive: int = 1
) -> dict[str, Any]:
    """All scores of a set of predictions.

    Args:
        labels: `[N]` int64 true classes.
        probabilities: `[N, C]` posteriors.
        class_names: C names.
        positive: the class of the positive-class scores.

    Returns:
        Plain numbers between 0 and 1: accuracy, balanced_accuracy, and precision, recall and f1,
        each `_macro` and `_positive`; auroc and auroc_hard (macro), calibration_error; `count`;
        `confusion`, counts `[C][C]` with true classes as rows; and `per_class`, for each name
        precision, recall, f1, auroc, auroc_hard and support. AUROC is None where a class has no
        samples or all of them.

        `auroc` ranks posteriors, one class against the rest. `auroc_hard` is what the paper
        tabulates as AUROC: of the predicted classes, (TPR + TNR) / 2.

    Example:
        >>> scores(np.array([0, 1]), np.eye(2), ("negative", "positive"))["f1_macro"]
        1.0
    """
    count = len(class_names)
    predicted = probabilities.argmax(1)
    counts = confusion_matrix(labels, predicted, labels=range(count))
    precision, recall, f1 = per_class_of(counts)
    auroc = [_auroc(labels == index, probabilities[:, index]) for index in range(count)]
    hard = [_hard(counts, index) for index in range(count)]
    columns = {"precision": precision, "recall": recall, "f1": f1}
    result: dict[str, Any] = {"count": len(labels), "accuracy": accuracy_of(counts)}
    result["balanced_accuracy"] = float(recall.mean())
    for name, values in columns.items():
        result[f"{name}_macro"] = float(values.mean())
        result[f"{name}_positive"] = float(values[positive])
    result["auroc"] = _mean(auroc)
    result["auroc_hard"] = _mean(hard)
    result["calibration_error"] = calibration_error(labels, probabilities)
    result["confusion"] = counts.tolist()
    result["per_class"] = {
        name: {
            **{column: float(values[index]) for column, values in columns.items()},
            "auroc": auroc[index],
            "auroc_hard": hard[index],
            "support": int(counts[index].sum()),
        }
        for index, name in enumerate(class_names)
    }
    return result


def per_class_of(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall, F1 `[..., C]` of confusion matrices `[..., C, C]`; 0 where undefined."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(float)
    true, predicted = counts.sum(-1), counts.sum(-2)
    return (
        hits / np.maximum(predicted, 1),
        hits / np.maximum(true, 1),
        2 * hits / np.maximum(true + predicted, 1),  # 2 TP / (2 TP + FP + FN)
    )


def accuracy_of(counts: np.ndarray) -> float:
    """Share of hits in a confusion matrix `[C, C]`."""
    return float(np.trace(counts) / max(counts.sum(), 1))


def macro_f1_of(counts: np.ndarray) -> float:
    """Plain mean of the classes' F1 in a confusion matrix `[C, C]`."""
    return float(per_class_of(counts)[2].mean())


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error: sum over 15 equal bins of |accuracy - confidence| N_b / N."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(
        torch.from_numpy(np.ascontiguousarray(probabilities, dtype=np.float32)),
        torch.from_numpy(np.asarray(labels, dtype=np.int64)),
        num_classes=probabilities.shape[1],
        n_bins=BINS,
        norm="l1",
    )
    return float(error)


def _auroc(truth: np.ndarray, score: np.ndarray) -> float | None:
    if truth.all() or not truth.any():
        return None
    return float(roc_auc_score(truth, score))


def _hard(counts: np.ndarray, index: int) -> float | None:
    """(TPR + TNR) / 2 of one class against the rest."""
    true, predicted, hits = counts[index].sum(), counts[:, index].sum(), counts[index, index]
    others = counts.sum() - true
    if true == 0 or others == 0:
        return None
    return float((hits / true + 1 - (predicted - hits) / others) / 2)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
