"""Splits into train, validation and test, a pure function of the labels, the groups and a seed."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from cfal_experiments.demo.samples import Samples, Split
from cfal_experiments.errors import InputError

TEST_FOLDS = 5  # one fold in five is the test part
VALIDATION_FOLDS = 7  # and one in seven of the rest, about 15 %, is the validation part


def stratified(samples: Samples, seed: int) -> Split:
    """Random split, 65 % / 15 % / 20 %, with the class proportions of the whole in each part."""
    labels = samples.labels.numpy()
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=0.20, stratify=labels, random_state=seed
    )
    train, validation = train_test_split(
        rest, test_size=0.1875, stratify=labels[rest], random_state=seed
    )
    return Split(np.sort(train), np.sort(validation), np.sort(test))


def by_group(samples: Samples, seed: int) -> Split:
    """Split whole groups (patients), about 69 % / 11 % / 20 %, classes as balanced as groups allow.

    Raises:
        InputError: too few groups for each part to hold every class.
    """
    assert samples.groups is not None
    labels, groups = samples.labels.numpy(), samples.groups
    rest, test = _one_fold(np.arange(len(labels)), labels, groups, TEST_FOLDS, seed)
    train, validation = _one_fold(rest, labels, groups, VALIDATION_FOLDS, seed)
    split = Split(train, validation, test)
    for name, rows in split.parts().items():
        for class_name, count in zip(samples.class_names, samples.counts(rows), strict=True):
            if count == 0:
                raise _too_few(groups, f"the {name} part has no {class_name} patch")
    return split


def _one_fold(
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    if len(np.unique(groups[rows])) < folds:
        raise _too_few(groups, f"{folds} folds are wanted")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    try:
        kept, fold = next(splitter.split(rows, labels[rows], groups[rows]))
    except ValueError as error:  # a class with fewer samples than folds
        raise _too_few(groups, str(error)) from error
    return rows[kept], rows[fold]


def _too_few(groups: np.ndarray, reason: str) -> InputError:
    count = len(np.unique(groups))
    return InputError(
        f"{count} patients are too few for a split by patient ({reason}): add patients of both "
        "classes"
    )
