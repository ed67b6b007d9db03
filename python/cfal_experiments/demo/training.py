"""The training loop: early stopping on a validation part, best weights restored."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from cfal_experiments.classifier import Classifier
from cfal_experiments.data.loading import flip, make_loader
from cfal_experiments.training import optimizers, start
from cfal_experiments.training.config import Config
from cfal_experiments.training.source import Part, Source

VALIDATION_BATCH = 512


def fit(
    classifier: Classifier,
    source: Source,
    config: Config,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> int:
    """Train `classifier` in place and leave it with the weights of its best epoch.

    Args:
        classifier: what to train.
        source: its training part is learned from, its validation part decides when to stop.
        config: optimizer, budget and seeds; the same seeds give every loss the same batches.
        on_epoch: called with the epoch (from 1) and its validation loss.

    Returns:
        The best epoch.
    """
    seeds, train = config.seeds, source.train
    start.initialise(classifier, train, config.training.first_batches, seeds.order)
    loader = make_loader(
        train.images, train.rows, config.data.batch_size, seed=seeds.order, shuffle=True
    )
    optimizer = optimizers.build(config.optimizer, classifier)
    best_loss, best_epoch = float("inf"), 0
    best_state = copy.deepcopy(classifier.state_dict())
    for epoch in range(1, config.training.epochs + 1):
        classifier.train()
        loader.sampler.set_epoch(epoch)
        for images, target, rows in loader:
            if config.data.flips:
                images = flip(images, rows, seeds.augmentation, epoch)
            optimizer.zero_grad(set_to_none=True)
            classifier(images, target).backward()
            optimizer.step()
        loss = mean_loss(classifier, source.validation)
        on_epoch(epoch, loss)
        if loss < best_loss:
            best_loss, best_epoch = loss, epoch
            best_state = copy.deepcopy(classifier.state_dict())
        elif epoch - best_epoch >= config.training.patience:
            break
    classifier.load_state_dict(best_state)
    return best_epoch


@torch.no_grad()
def mean_loss(classifier: Classifier, part: Part) -> float:
    """Mean loss over the images of a part, without augmentation."""
    classifier.eval()
    total = sum(
        float(classifier(batch.images, batch.labels)) * len(batch.labels)
        for batch in make_loader(part.images, part.rows, VALIDATION_BATCH)
    )
    return total / len(part.rows)
