"""Which point of a space comes next: Optuna's tree-structured Parzen estimator.

A point is a function of the seed, its number and the scores before it, and not of a generator that
would have to be kept: every point has a sampler with a seed of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from cfal_experiments.tuning.space import Dimension, size


def maximise(
    space: Sequence[Dimension],
    score: Callable[[int, dict[str, Any]], float],
    trials: int,
    *,
    seed: int = 0,
    first: dict[str, Any] | None = None,
) -> None:
    """Call `score` with the number and the values of up to `trials` different points.

    Ten points are drawn at random, the others where high scores are likely.

    Args:
        space: what to vary.
        score: what to maximise.
        trials: how many points; fewer where the space has fewer.
        seed: of the search.
        first: the first point; by default it is drawn like the others.

    Example:
        >>> maximise([Dimension("loss.sigma", (80, 130))], train_and_score, trials=2)
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    if first is not None:
        study.enqueue_trial(first)
    known: list[dict[str, Any]] = []
    for number in range(min(trials, size(space) or trials)):
        asked, values = _ask(study, space, known, (seed, number))
        known.append(values)
        study.tell(asked, score(number, values))


def _ask(
    study: optuna.Study,
    space: Sequence[Dimension],
    known: Sequence[dict[str, Any]],
    key: tuple[int, int],
) -> tuple[optuna.Trial, dict[str, Any]]:
    """A new point: the estimator's, or where that was had before, random ones until one is new."""
    for attempt in itertools.count():
        kind = optuna.samplers.RandomSampler if attempt else optuna.samplers.TPESampler
        own = np.random.SeedSequence((*key, attempt)).generate_state(1)[0]
        study.sampler = kind(seed=int(own))
        asked = study.ask()
        values = {dimension.field: dimension.suggest(asked) for dimension in space}
        if values not in known:
            return asked, values
        study.tell(asked, state=TrialState.FAIL)
    raise AssertionError("count() does not end")
