"""The search: train settings that are proposed, score them on validation images, repeat.

A search that is started again walks through the same trials, takes the scores of those that are
complete from their folders, and goes on with the first that is not.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfal_experiments import losses, models
from cfal_experiments.data.images import ImageSet
from cfal_experiments.errors import InputError, NotFinite
from cfal_experiments.training import configuration, source
from cfal_experiments.training import run as runs
from cfal_experiments.training.config import Config
from cfal_experiments.training.folder import RunFolder
from cfal_experiments.tuning.sampling import maximise
from cfal_experiments.tuning.space import Dimension

PART = "validation"


@dataclass(frozen=True)
class Plan:
    """What a search does.

    Attributes:
        base: the configuration that the trials vary; its `seeds.split` is that of all of them.
        space: what they vary.
        repeats: runs of a trial; its score is their mean.
        score: which validation score is maximised, by its name in `evaluation.metrics.scores`.
        seed: of the search.
    """

    base: Config
    space: tuple[Dimension, ...]
    repeats: int = 1
    score: str = "f1_macro"
    seed: int = 0

    def config(self, values: dict[str, Any], repeat: int = 0) -> Config:
        """The configuration of one run; repeats differ in every seed but that of the split."""
        config = configuration.override(self.base, values)
        for name in ("init", "order", "augmentation"):
            setattr(config.seeds, name, getattr(config.seeds, name) + repeat)
        return config


@dataclass(frozen=True)
class Trial:
    """One point of the space, trained and scored.

    Attributes:
        number: from 0.
        values: by field.
        folders: of its runs, one per repeat.
        summaries: of its runs; None where the loss was never finite.
        score: mean of the plan's score over the runs; 0 if one of them was not finite.
    """

    number: int
    values: dict[str, Any]
    folders: tuple[RunFolder, ...]
    summaries: tuple[dict[str, Any] | None, ...]
    score: float


def prepare(plan: Plan) -> ImageSet:
    """The images of a search; everything that can be checked before its first trial is.

    Raises:
        InputError: the images, their split or a value of the space cannot be used.
    """
    for dimension in plan.space:
        for value in dimension.choices or (dimension.low, dimension.high):
            loss = configuration.override(plan.base, {dimension.field: value}).loss
            losses.build(loss.name, 2, 2, [100, 100], **loss.arguments())
    base = plan.base
    side = base.data.size or models.build(base.model.name, **base.model.arguments()).input_size
    images = source.open_images(base.data, base.data.path, side)
    source.make_split(base, images)
    return images


def search(
    plan: Plan,
    images: ImageSet,
    trials: int,
    output: Path,
    on_trial: Callable[[list[Trial]], object] = lambda trials: None,
) -> list[Trial]:
    """Train and score up to `trials` different points of a space; no test image is looked at.

    The first point is the base configuration's own, where the space holds it.

    Args:
        plan: what to vary and how to score.
        images: of `prepare`.
        trials: how many; fewer where the space has fewer points.
        output: folder of the trials, `trial-000/repeat-0` and so on.
        on_trial: called with all trials so far, after each.

    Raises:
        InputError: a configuration, the data or a folder cannot be used.
    """
    found: list[Trial] = []

    def train(number: int, values: dict[str, Any]) -> float:
        folders = tuple(
            RunFolder(output / f"trial-{number:03}" / f"repeat-{repeat}")
            for repeat in range(plan.repeats)
        )
        summaries = tuple(
            _train(plan.config(values, repeat), folder, images)
            for repeat, folder in enumerate(folders)
        )
        scores = [0.0 if s is None else s["scores"][PART][plan.score] or 0.0 for s in summaries]
        score = 0.0 if None in summaries else statistics.mean(scores)
        found.append(Trial(number, values, folders, summaries, score))
        on_trial(found)
        return score

    maximise(plan.space, train, trials, seed=plan.seed, first=own_values(plan))
    return found


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest score; of equals the first.

    Raises:
        InputError: none has come to a finite loss.
    """
    if not any(None not in trial.summaries for trial in trials):
        raise InputError("no trial came to a finite validation loss; search lower learning rates")
    return max(trials, key=lambda trial: trial.score)


def own_values(plan: Plan) -> dict[str, Any] | None:
    """The point of the space at which the base configuration is; None where it is outside."""
    plain = plan.base.as_dict()
    defaults = {f"loss.{key}": v for key, v in losses.options(plan.base.loss.name).items()}
    values = {}
    for dimension in plan.space:
        value: Any = plain
        for key in dimension.field.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            value = defaults.get(dimension.field.replace("loss.options.", "loss."))
        if not dimension.holds(value):
            return None
        values[dimension.field] = value
    return values


def _train(config: Config, folder: RunFolder, images: ImageSet) -> dict[str, Any] | None:
    """The summary of a run, trained, continued or read; None where its loss was never finite."""
    begun = folder.config.is_file()
    if begun and not _same(configuration.load(folder.config), config):
        raise InputError(
            f"{folder.path}: holds a run with other settings; choose another folder with -o"
        )
    try:
        if begun:
            runs.resume(folder.path, images=images, parts=(PART,), quiet=True)
        else:
            runs.train(config, folder.path, images=images, parts=(PART,), quiet=True)
    except NotFinite:
        return None
    # Nothing continues from a complete run, and its best weights are in the exported model.
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return folder.read_summary()


def _same(one: Config, other: Config) -> bool:
    """Equal but for where the images are, which may be moved."""
    return configuration.without_places(one) == configuration.without_places(other)
