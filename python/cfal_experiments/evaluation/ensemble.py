"""Runs joined into one set of predictions, where they speak of the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cfal_experiments.errors import InputError
from cfal_experiments.evaluation import predictions
from cfal_experiments.evaluation.combining import combine
from cfal_experiments.evaluation.predictions import Predictions
from cfal_experiments.training.folder import RunFolder


def join(runs: Sequence[Path], part: str, strategy: str) -> Predictions:
    """Combine the predictions that runs saved for one part.

    Args:
        runs: folders of two or more complete runs.
        part: "validation" or "test".
        strategy: of `combining.combine`.

    Raises:
        InputError: fewer than two runs, one that is not complete, or runs with other classes or
            other images.
    """
    if len(runs) < 2:
        raise InputError(f"an ensemble of {len(runs)} run; give two or more")
    for run in runs:
        RunFolder(run).require_begun()
        RunFolder(run).read_summary()
    first, *others = (predictions.load(RunFolder(run).predictions, part) for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        if other.class_names != first.class_names:
            raise InputError(
                f"{run}: classes {', '.join(other.class_names)}, but {', '.join(first.class_names)}"
                f" in {runs[0]}; combine runs on the same data"
            )
        same = np.array_equal(other.paths, first.paths)
        if not same or not np.array_equal(other.labels, first.labels):
            raise InputError(
                f"{run}: other {part} images than {runs[0]}; combine runs with the same split, "
                f"--seeds.split"
            )
    posteriors = combine([each.probabilities for each in (first, *others)], strategy)
    return dataclasses.replace(first, probabilities=posteriors)
