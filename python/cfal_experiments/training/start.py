"""Before the first step: fit the head to the features, and tell what it sees."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfal_experiments import atomic
from cfal_experiments.classifier import Classifier
from cfal_experiments.data.loading import CachedImages, make_loader
from cfal_experiments.training.source import Part

CHUNK = 256  # images embedded at a time


def initialise(classifier: Classifier, part: Part, count: int, seed: int) -> None:
    """Give the loss features of `count` training images, where its options ask for them.

    Args:
        classifier: untrained.
        part: training images.
        count: at most so many, drawn at random.
        seed: of the draw.
    """
    if not classifier.loss.needs_initialisation:
        return
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(part.rows)[:count])
    features, target = _embed(classifier, Part(part.images, rows))
    classifier.loss.initialise_from(features, target)


def report(classifier: Classifier, part: Part, batch_size: int, seed: int) -> dict[str, float]:
    """What the first training batch looks like to the loss; empty for most losses."""
    loader = make_loader(part.images, part.rows, batch_size, seed=seed, shuffle=True)
    rows = next(iter(loader)).rows.numpy()
    return classifier.loss.report(*_embed(classifier, Part(part.images, rows)))


def tell(facts: Mapping[str, float], file: Path, quiet: bool = False) -> None:
    """Print the report of the first batch and keep it in the run folder."""
    if not facts:
        return
    if not quiet:
        print("first batch: " + ", ".join(f"{name} {value:.4g}" for name, value in facts.items()))
    atomic.write_text(file, json.dumps(facts, indent=2) + "\n")


@torch.no_grad()
def _embed(classifier: Classifier, part: Part) -> tuple[Tensor, Tensor]:
    training = classifier.training
    classifier.eval()
    images = CachedImages(part.images, part.rows)
    chunks = [
        images.__getitems__(range(begin, min(begin + CHUNK, len(images))))
        for begin in range(0, len(images), CHUNK)
    ]
    features = torch.cat([classifier.features(chunk.images) for chunk in chunks])
    classifier.train(training)
    return features, torch.cat([chunk.labels for chunk in chunks])
