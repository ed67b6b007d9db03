"""The search that chose the demo's settings: equal trials for each loss, validation scores only.

Run `python -m cfal_experiments.demo.tuning` for the digits, and with `--data DIR --trials 8
--seeds 1` for IDC. Its seeds begin at 1000, so no split that the demo reports is used. They are
other splits of the same samples (patients), not other samples: a small optimism that all losses
share.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cfal_experiments.demo.comparison import run
from cfal_experiments.demo.tasks import digits_task, load_idc_task
from cfal_experiments.demo.training import Recipe

FIRST_SEED = 1000

# With cross-entropy, AlexNet from torch's initialisation does not train at 3e-3 and above.
RATES: Mapping[str, Mapping[str, Sequence[float]]] = {
    "digits": {"learning_rate": (3e-4, 1e-3, 3e-3, 1e-2), "weight_decay": (0.01, 0.1)},
    "idc": {"learning_rate": (3e-4, 1e-3), "weight_decay": (0.01, 0.1)},
}
OPTIONS: Mapping[str, Mapping[str, Sequence[object]]] = {
    "cross-entropy": {"label_smoothing": (0.0, 0.1)},
    "weighted cross-entropy": {"label_smoothing": (0.0, 0.1), "beta": (0.99, 0.999, 0.9999)},
    "cfal": {
        "sigma": (32.0, 130.0, 430.0),
        "margin": (0.1, 0.5),
        "gamma": (0.5, 1.0, 2.0),
        "beta": (0.99, 0.999, 0.9999),
        "detach_focal": (False, True),
    },
}


def trials(task_name: str, loss: str, count: int) -> list[Recipe]:
    """Draw `count` distinct recipes of one loss from its grid, always the same ones."""
    rates, options = RATES[task_name], OPTIONS[loss]
    space = {**rates, **options}
    grid = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    chosen = [grid[row] for row in np.random.default_rng(0).permutation(len(grid))[:count]]
    return [
        Recipe(
            loss,
            {name: settings[name] for name in options},
            **{name: settings[name] for name in rates},
        )
        for settings in chosen
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the trials of each loss, the best first."""
    parser = argparse.ArgumentParser(prog="python -m cfal_experiments.demo.tuning")
    parser.add_argument("--data", type=Path, help="IDC folder; the digits without it")
    parser.add_argument("--trials", type=int, default=16, help="per loss (default 16)")
    parser.add_argument("--seeds", type=int, default=5, help="per trial (default 5)")
    parser.add_argument("--loss", choices=OPTIONS, help="only this one (default all)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the task's)")
    options = parser.parse_args(arguments)
    task = digits_task() if options.data is None else load_idc_task(options.data)
    torch.set_num_threads(options.threads or task.threads)
    for recipe in task.recipes:
        if options.loss not in (None, recipe.loss):
            continue
        ranking = []
        for trial in tqdm(trials(task.name, recipe.loss, options.trials), desc=recipe.loss):
            seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
            f1 = [run(task, trial, seed, "validation")["macro F1"] for seed in seeds]
            ranking.append((statistics.mean(f1), trial))
        for score, trial in sorted(ranking, key=lambda entry: -entry[0]):
            print(f"validation macro F1 {score:.4f}  {trial}", flush=True)


if __name__ == "__main__":
    main()
