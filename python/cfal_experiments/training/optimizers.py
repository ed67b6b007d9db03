"""Optimizers by name, with a learning rate of its own for the head."""

from __future__ import annotations

from torch import optim

from cfal_experiments.classifier import Classifier
from cfal_experiments.training.config import OptimizerConfig


def build(
    config: OptimizerConfig, classifier: Classifier, *, fused: bool = True
) -> optim.Optimizer:
    """An optimizer on the model and on the loss's own parameters, in two groups.

    Args:
        config: its name and settings.
        classifier: what is trained.
        fused: one kernel per step. Not in mixed precision, where Lightning refuses to clip for it:
            with scaled gradients (float16) it unscales on its own.
    """
    head_rate = config.head_learning_rate
    groups = [
        {"params": list(classifier.model.parameters()), "lr": config.learning_rate},
        {
            "params": list(classifier.loss.parameters()),
            "lr": config.learning_rate if head_rate is None else head_rate,
        },
    ]
    shared = {"weight_decay": config.weight_decay, "fused": fused}
    if config.name == "sgd":
        return optim.SGD(groups, config.learning_rate, momentum=config.momentum, **shared)
    kind = optim.AdamW if config.name == "adamw" else optim.Adam
    return kind(groups, config.learning_rate, **shared)
