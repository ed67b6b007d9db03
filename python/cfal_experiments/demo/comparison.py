"""A comparison of losses: same data, same split, same budget, several seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from cfal_experiments import losses
from cfal_experiments.demo.batches import Normalisation
from cfal_experiments.demo.samples import Samples, Split
from cfal_experiments.demo.scores import scores
from cfal_experiments.demo.training import Budget, Recipe, System, fit, predict

# The demo's names of losses, and the harness's where it differs.
REGISTERED: Mapping[str, str] = {"weighted cross-entropy": "cross-entropy"}


@dataclass(frozen=True)
class Task:
    """What is learned, the budget that every loss is given, and how to speak of it.

    Attributes:
        name: "digits" or "idc".
        title: heading.
        facts: `(name, text)` lines on the data.
        samples: all images.
        split: makes a split from a seed.
        split_text: how the split is made.
        build_model: makes a model with an `embedding_dim`.
        minority: picks the rare classes from the training counts.
        minority_text: what the minority is, for the reader.
        budget: epochs, patience, batch size, flips.
        recipes: the losses to compare, the baseline first and CFAL last.
        settings_text: where the recipes come from.
        columns: scores to print.
        seeds: runs per loss unless the user says otherwise.
        threads: CPU threads that the model can make use of.
    """

    name: str
    title: str
    facts: tuple[tuple[str, str], ...]
    samples: Samples
    split: Callable[[int], Split]
    split_text: str
    build_model: Callable[[], nn.Module]
    minority: Callable[[Sequence[int]], list[int]]
    minority_text: str
    budget: Budget
    recipes: tuple[Recipe, ...]
    settings_text: str
    columns: tuple[str, ...]
    seeds: int
    threads: int


def build_system(task: Task, recipe: Recipe, class_counts: Sequence[int], seed: int) -> System:
    """Model and loss; the same seed gives every loss the same initial model."""
    torch.manual_seed(seed)
    model = task.build_model()
    loss = losses.build(
        REGISTERED.get(recipe.loss, recipe.loss),
        task.samples.num_classes,
        model.embedding_dim,
        class_counts,
        **recipe.options,
    )
    return System(model, loss).to(memory_format=torch.channels_last)


def run(
    task: Task,
    recipe: Recipe,
    seed: int,
    part: Literal["validation", "test"],
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> dict[str, float]:
    """Train one loss with one seed and score it on one part.

    The seed sets the split, the initial weights, the order and the augmentation. Early stopping
    reads the validation part only.
    """
    samples, split = task.samples, task.split(seed)
    counts = samples.counts(split.train)
    system = build_system(task, recipe, counts, seed)
    fit(system, samples, split, recipe, task.budget, seed, on_epoch)
    rows: np.ndarray = getattr(split, part)
    probabilities = predict(system, samples, rows, Normalisation.of(samples, split.train))
    return scores(samples.labels[rows].numpy(), probabilities, task.minority(counts))
