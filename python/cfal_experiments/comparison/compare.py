"""Train every configuration with every seed; what is complete is left as it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cfal_experiments.training import run as runs
from cfal_experiments.training.config import Config
from cfal_experiments.training.folder import RunFolder
from cfal_experiments.training.source import ImageSet, open_images


@dataclass(frozen=True)
class Trial:
    """One run of a comparison.

    Attributes:
        name: of the configuration.
        seed: all four seeds of the run, so that every configuration meets the same split, order
            and flips; but that of the split where the comparison has one split for all.
        folder: of the run.
    """

    name: str
    seed: int
    folder: RunFolder


def plan(names: Sequence[str], seeds: Sequence[int], output: str | os.PathLike[str]) -> list[Trial]:
    """The runs of a comparison, seed by seed: an interrupted one has whole seeds."""
    return [
        Trial(name, seed, RunFolder(Path(output) / name / f"seed{seed}"))
        for seed in seeds
        for name in names
    ]


def train_all(
    trials: Sequence[Trial],
    configs: Mapping[str, Config],
    on_trial: Callable[[Trial, runs.Outcome], object] = lambda trial, outcome: None,
    *,
    split_seed: int | None = None,
) -> None:
    """Train, continue or skip each trial, whichever its folder calls for.

    Args:
        trials: what to do.
        configs: by name; each trial sets the seeds of its own copy.
        on_trial: called with each finished trial.
        split_seed: of one split for all trials; by default each has its own, by its seed.

    Raises:
        InputError: as `training.run.train`.
    """
    opened: dict[tuple[str | None, int | None], ImageSet] = {}
    for trial in trials:
        config = configs[trial.name]
        images = None
        # The images of one path and size are decoded and opened once for all trials.
        place = (config.data.path, config.data.size)
        if config.data.size is not None:
            if place not in opened:
                opened[place] = open_images(config.data, *place)
            images = opened[place]
        for seed in vars(config.seeds):
            setattr(config.seeds, seed, trial.seed)
        if split_seed is not None:
            config.seeds.split = split_seed
        folder = trial.folder.path
        if trial.folder.config.is_file():
            outcome = runs.resume(folder, data=config.data.path, images=images, quiet=True)
        else:
            outcome = runs.train(config, folder, images=images, quiet=True)
        if outcome is not None:
            on_trial(trial, outcome)
