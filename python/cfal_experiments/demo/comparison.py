"""A comparison of losses: same data, same split, same budget, several seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from cfal_experiments import classifier as systems
from cfal_experiments.classifier import Classifier
from cfal_experiments.data.images import ImageSet
from cfal_experiments.data.partition import Split
from cfal_experiments.demo.training import fit
from cfal_experiments.evaluation import inference, metrics
from cfal_experiments.training.config import Config, SeedsConfig
from cfal_experiments.training.source import Part, Source


@dataclass(frozen=True)
class Recipe:
    """One loss with its own hyperparameters, chosen on validation parts.

    Attributes:
        name: for the table.
        config: loss, optimizer and budget; all recipes of a task have the same budget.
    """

    name: str
    config: Config

    def __str__(self) -> str:
        """One line for people."""
        settings = {
            **self.config.loss.arguments(),
            "learning rate": self.config.optimizer.learning_rate,
            "prototype rate": self.config.optimizer.head_learning_rate,
            "weight decay": self.config.optimizer.weight_decay,
        }
        return f"{self.name}: " + ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in settings.items()
            if value is not None
        )


@dataclass(frozen=True)
class Task:
    """What is learned, by which losses, and how to speak of it.

    Attributes:
        title: heading.
        facts: `(name, text)` lines on the data.
        images: all of them.
        split: makes a split from a seed.
        split_text: how the split is made.
        build_model: makes a model with an `embedding_dim`.
        minority: picks the rare classes from the training counts.
        minority_text: what the minority is, for the reader.
        recipes: the losses to compare, the baseline first and CFAL last.
        settings_text: where the recipes come from.
        columns: scores to print.
        seeds: runs per loss unless the user says otherwise.
        threads: CPU threads that the model can make use of.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    images: ImageSet
    split: Callable[[int], Split]
    split_text: str
    build_model: Callable[[], nn.Module]
    minority: Callable[[Sequence[int]], list[int]]
    minority_text: str
    recipes: tuple[Recipe, ...]
    settings_text: str
    columns: tuple[str, ...]
    seeds: int
    threads: int

    @property
    def budget(self) -> Config:
        """Epochs, patience, batch size and flips, which all recipes share."""
        return self.recipes[0].config


def build_system(task: Task, config: Config, split: Split) -> Classifier:
    """Model and loss; the same seed gives every loss the same initial model."""
    torch.manual_seed(config.seeds.init)
    source = Source(task.images, split)
    return systems.build(
        task.build_model(),
        config.loss,
        task.images.counts(split.train),
        source.normalisation("training"),
        config.seeds.init,
    )


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
    config = dataclasses.replace(recipe.config, seeds=SeedsConfig(seed, seed, seed, seed))
    split = task.split(seed)
    system = build_system(task, config, split)
    fit(system, Source(task.images, split), config, on_epoch)
    found = inference.predict_part(system, Part(task.images, getattr(split, part)))
    minority = task.minority(task.images.counts(split.train))
    return scores(found.labels, found.probabilities, found.class_names, minority)


def scores(
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    minority: Sequence[int],
) -> dict[str, float]:
    """The headline scores under their headings, and the mean recall of the minority classes."""
    found = metrics.scores(labels, probabilities, class_names)
    recalls = [found["per_class"][class_names[label]]["recall"] for label in minority]
    headlines = {heading: found[name] for name, heading in metrics.HEADLINES.items()}
    return {**headlines, "minority recall": float(np.mean(recalls))}
