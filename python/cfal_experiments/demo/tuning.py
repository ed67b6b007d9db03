"""The search that chose the demo's settings for the digits: validation scores, equal trials.

Run `python -m cfal_experiments.demo.tuning`. Its seeds begin at 1000, so no split that the demo
reports is used. They are other splits of the same images, not other images: a small optimism that
all losses share. The settings for IDC are those of presets, which `cfal tune` chose.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cfal_experiments.demo.comparison import Recipe, Task, run
from cfal_experiments.demo.tasks import digits_task
from cfal_experiments.progress import bar
from cfal_experiments.training import configuration
from cfal_experiments.tuning.sampling import maximise
from cfal_experiments.tuning.space import Dimension

FIRST_SEED = 1000

RATES = (
    Dimension("optimizer.learning_rate", (3e-4, 1e-3, 3e-3, 1e-2)),
    Dimension("optimizer.weight_decay", (0.01, 0.1)),
)
BETA = Dimension("loss.beta", (0.99, 0.999, 0.9999))
SMOOTHING = Dimension("loss.label_smoothing", (0.0, 0.1))
SPACES: Mapping[str, tuple[Dimension, ...]] = {
    "cross-entropy": (*RATES, SMOOTHING),
    "weighted cross-entropy": (*RATES, SMOOTHING, BETA),
    "cfal": (
        *RATES,
        Dimension("loss.sigma", (32.0, 130.0, 430.0)),
        Dimension("loss.margin", (0.1, 0.5)),
        Dimension("loss.gamma", (0.5, 1.0, 2.0)),
        BETA,
        Dimension("loss.detach_focal", (False, True)),
    ),
}


def search(task: Task, recipe: Recipe, trials: int, seeds: int) -> list[tuple[float, Recipe]]:
    """Mean validation macro F1 and recipe of each trial of one loss, the best first."""
    found: list[tuple[float, Recipe]] = []
    with bar(trials, recipe.name, "trial") as progress:

        def score(number: int, values: dict[str, Any]) -> float:
            trial = Recipe(recipe.name, configuration.override(recipe.config, values))
            f1 = statistics.mean(
                run(task, trial, FIRST_SEED + seed, "validation")["macro F1"]
                for seed in range(seeds)
            )
            found.append((f1, trial))
            progress.update()
            return f1

        maximise(SPACES[recipe.name], score, trials)
    return sorted(found, key=lambda entry: -entry[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the trials of each loss, the best first."""
    parser = argparse.ArgumentParser(prog="python -m cfal_experiments.demo.tuning")
    parser.add_argument("--trials", type=int, default=16, help="per loss (default 16)")
    parser.add_argument("--seeds", type=int, default=5, help="per trial (default 5)")
    parser.add_argument("--loss", choices=SPACES, help="only this one (default all)")
    options = parser.parse_args(arguments)
    task = digits_task()
    torch.set_num_threads(task.threads)
    for recipe in task.recipes:
        if options.loss in (None, recipe.name):
            for score, trial in search(task, recipe, options.trials, options.seeds):
                print(f"validation macro F1 {score:.4f}  {trial}", flush=True)


if __name__ == "__main__":
    main()
