"""Losses with a margin on the angle between a feature and its class: ArcFace, CosFace, SphereFace.

All three are softmax cross-entropy on s cos(theta_ij), with theta_ij the angle between feature i
and the direction of class j, where the own class gets a smaller value instead. They differ in it.

The value must be smaller at every angle. One above cos(theta) at theta = pi rewards a network that
knows nothing: with the directions of all classes on one point and every feature opposite to it,
each own class is ahead of the others. Training ends there, at a loss near 0 (docs/deviations.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cfal_experiments.losses import checks
from cfal_experiments.losses.base import HeadedLoss, balanced_weights, weighted_mean

# The floor under a norm, in the authors' code as well: a feature of zeros gets no gradient of 1e12.
NORM_FLOOR = 1e-6


class CosineHead(nn.Module):
    """cos(theta_ij) = f_i . w_j / (|f_i| |w_j|): the angles to one direction per class.

    Args:
        embedding_dim: D.
        num_classes: C.

    Attributes:
        weight: parameter `[C, D]`; only its rows' directions matter.
    """

    def __init__(self, embedding_dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Cosines `[B, C]` of features `[B, D]`, in float32 (float64 for float64).

        Never in half precision, autocast or not: near 1, where training leads, bfloat16 has no
        value between cos(0) and cos(5 degrees).
        """
        dtype = torch.promote_types(features.dtype, self.weight.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            directions = functional.normalize(self.weight.to(dtype), dim=1, eps=NORM_FLOOR)
            unit = functional.normalize(features.to(dtype), dim=1, eps=NORM_FLOOR)
            return functional.linear(unit, directions)


class AngularMarginLoss(HeadedLoss):
    """Cross-entropy on s cos(theta), with a margin on the own class; class-balanced.

    mean_i omega_{y_i} CE(z_i, y_i) with z_ij = s cos(theta_ij) for j != y_i and
    z_{i,y_i} = s `with_margin`(cos(theta_{i,y_i})).

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]` training samples per class.
        scale: s, > 0.
        margin: m, >= 0; its unit is the subclass's.
        beta: of the class-balanced weights, in [0, 1); None for no weights.
        inference: logits at prediction: "scaled" for s cos(theta), "authors" for cos(theta) alone,
            as the authors' code has it. The classes chosen are the same. But without s a posterior
            of 9 classes with evenly spread directions stays below 0.28, so that averages and maxima
            over networks come out differently.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        scale: float,
        margin: float,
        beta: float | None,
        inference: str,
    ) -> None:
        super().__init__(num_classes, embedding_dim, class_counts)
        self.head = CosineHead(embedding_dim, num_classes)
        self.scale = checks.number("scale", scale, above=0.0)
        self.margin = checks.number("margin", margin, minimum=0.0)
        self.inference = checks.one_of("inference", inference, ("scaled", "authors"))
        self.register_buffer("class_weights", balanced_weights(class_counts, beta))

    def with_margin(self, cosine: Tensor) -> Tensor:
        """What takes the place of cos(theta) for the own class; any shape."""
        raise NotImplementedError(f"{type(self).__name__} must define with_margin")

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Mean loss of features `[B, D]` and classes `[B]`."""
        cosine = self.head(features)  # [B, C]
        own = target[:, None]  # [B, 1]
        moved = cosine.scatter(1, own, self.with_margin(cosine.gather(1, own)))
        terms = functional.cross_entropy(self.scale * moved, target, reduction="none")
        return weighted_mean(terms, target, self.class_weights)

    def logits(self, features: Tensor) -> Tensor:
        """S cos(theta) `[B, C]` of features `[B, D]`, or cos(theta) for inference="authors"."""
        cosine = self.head(features)
        return cosine if self.inference == "authors" else self.scale * cosine


class ArcFace(AngularMarginLoss):
    """Class-balanced ArcFace (Deng et al. 2019): s cos(theta + m) for the own class.

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]` training samples per class.
        scale: s, > 0.
        margin: m in radians, in [0, pi).
        beta: of the class-balanced weights, in [0, 1); None for no weights.
        monotone: beyond theta = pi - m, where cos(theta + m) rises again and would push a feature
            further away, continue with cos(theta) - m sin(m), as Deng et al.'s code does. The
            authors' code does not (False), and need not train: see the top of this file.
        inference: "scaled" or "authors"; see `AngularMarginLoss`.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range.

    Example:
        >>> loss = ArcFace(2, 64, counts, scale=30.0, margin=0.5)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        scale: float = 30.0,
        margin: float = 0.5,
        beta: float | None = 0.9999,
        monotone: bool = True,
        inference: Literal["scaled", "authors"] = "scaled",
    ) -> None:
        super().__init__(num_classes, embedding_dim, class_counts, scale, margin, beta, inference)
        if self.margin >= math.pi:
            raise ValueError(f"margin is an angle in radians below pi, got {margin!r}")
        self.monotone = checks.flag("monotone", monotone)

    def with_margin(self, cosine: Tensor) -> Tensor:
        """cos(theta + m), continued beyond pi - m."""
        theta = _angle(cosine)
        moved = torch.cos(theta + self.margin)
        if not self.monotone:
            return moved
        beyond = cosine - self.margin * math.sin(self.margin)
        return torch.where(theta <= math.pi - self.margin, moved, beyond)


class CosFace(AngularMarginLoss):
    """Class-balanced CosFace (Wang et al. 2018): s (cos(theta) - m) for the own class.

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]` training samples per class.
        scale: s, > 0.
        margin: m, a cosine, >= 0.
        beta: of the class-balanced weights, in [0, 1); None for no weights.
        inference: "scaled" or "authors"; see `AngularMarginLoss`.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range.

    Example:
        >>> loss = CosFace(2, 64, counts, scale=10.0, margin=0.5)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        scale: float = 10.0,
        margin: float = 0.5,
        beta: float | None = 0.9999,
        inference: Literal["scaled", "authors"] = "scaled",
    ) -> None:
        super().__init__(num_classes, embedding_dim, class_counts, scale, margin, beta, inference)

    def with_margin(self, cosine: Tensor) -> Tensor:
        """cos(theta) - m."""
        return cosine - self.margin


class SphereFace(AngularMarginLoss):
    """Class-balanced SphereFace: s psi(k theta) for the own class.

    With n = floor(phi / pi), psi(phi) = (-1)^n cos(phi) - 2 n: cos(phi) up to phi = pi, and falling
    from there on as well (Liu et al. 2017, for whom k is a whole number).

    k = 1 + m is a margin, as in the public Keras code for these losses. k = m is the paper's. With
    its m = 0.35 the own class gets a *larger* logit than without a margin, in training only: at
    s = 30 the loss vanishes before anything is learnt.

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]` training samples per class.
        scale: s, > 0.
        margin: m, a factor on the angle, >= 0.
        factor: "one-plus" for k = 1 + m, "literal" for k = m.
        beta: of the class-balanced weights, in [0, 1); None for no weights.
        monotone: psi as above; False for cos(k theta) throughout, as in the authors' code, which
            rises again beyond theta = pi / k.
        inference: "scaled" or "authors"; see `AngularMarginLoss`.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range.

    Example:
        >>> loss = SphereFace(2, 64, counts, scale=30.0, margin=0.35)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        scale: float = 30.0,
        margin: float = 0.35,
        factor: Literal["one-plus", "literal"] = "one-plus",
        beta: float | None = 0.9999,
        monotone: bool = True,
        inference: Literal["scaled", "authors"] = "scaled",
    ) -> None:
        super().__init__(num_classes, embedding_dim, class_counts, scale, margin, beta, inference)
        self.factor = checks.one_of("factor", factor, ("one-plus", "literal"))
        self.monotone = checks.flag("monotone", monotone)

    def with_margin(self, cosine: Tensor) -> Tensor:
        """psi(k theta), or cos(k theta) where it need not be monotone."""
        phi = (self.margin if self.factor == "literal" else 1.0 + self.margin) * _angle(cosine)
        if not self.monotone:
            return torch.cos(phi)
        turns = torch.floor(phi.detach() / math.pi)  # n
        sign = 1.0 - 2.0 * torch.remainder(turns, 2.0)  # (-1)^n
        return sign * torch.cos(phi) - 2.0 * turns


def _angle(cosine: Tensor) -> Tensor:
    """Theta = acos(cosine), with a finite slope everywhere.

    The slope -1 / sin(theta) is infinite at cosine = 1 and -1, and rounding carries cosines beyond.
    The clamp ends it a unit roundoff before, with slope 0 from there on: what is lost is nothing,
    for d cos(theta) / df = (w - cos(theta) f) / |f| of unit vectors vanishes there.
    """
    limit = 1.0 - torch.finfo(cosine.dtype).eps
    return torch.acos(cosine.clamp(-limit, limit))
