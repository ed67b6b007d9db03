"""Losses by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cfal_experiments import factory
from cfal_experiments.losses.affinity import CFAL, Affinity, ClassBalancedAffinity
from cfal_experiments.losses.angular import ArcFace, CosFace, SphereFace
from cfal_experiments.losses.authors import CFALAuthorsCode
from cfal_experiments.losses.base import HeadedLoss
from cfal_experiments.losses.softmax import CrossEntropy, Focal

LOSSES: Mapping[str, type[HeadedLoss]] = {
    "cross-entropy": CrossEntropy,
    "focal": Focal,
    "arcface": ArcFace,
    "cosface": CosFace,
    "sphereface": SphereFace,
    "affinity": Affinity,
    "class-balanced-affinity": ClassBalancedAffinity,
    "cfal": CFAL,
    "cfal-authors-code": CFALAuthorsCode,
}


def build(
    name: str,
    num_classes: int,
    embedding_dim: int,
    class_counts: Sequence[int],
    **options: Any,
) -> HeadedLoss:
    """The loss called `name`, with its head.

    Args:
        name: a key of `LOSSES`.
        num_classes: C.
        embedding_dim: D of the model.
        class_counts: `[C]` samples per class in the training part.
        **options: those of the loss; see `options`.

    Raises:
        InputError: an unknown name or option, naming the choices, or a value that does not fit.

    Example:
        >>> loss = build("arcface", 9, 128, counts, scale=15.0, margin=0.1, beta=0.9999)
        >>> loss(features, target).backward()
        >>> posteriors = loss.predict_proba(features)
    """
    loss = factory.choose("loss", name, LOSSES)
    return factory.construct(
        f"loss {name!r}", loss, num_classes, embedding_dim, class_counts, options=options
    )


def options(name: str) -> dict[str, Any]:
    """The options of a loss and their defaults.

    Raises:
        InputError: there is no such loss.

    Example:
        >>> options("focal")
        {'gamma': 2.0, 'beta': 0.9999}
    """
    return factory.options_of(factory.choose("loss", name, LOSSES))
