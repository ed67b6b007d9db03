"""Losses on the softmax of a linear head: cross-entropy and focal loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cfal_experiments.losses import checks
from cfal_experiments.losses.base import HeadedLoss, balanced_weights, weighted_mean


class LinearHeadLoss(HeadedLoss):
    """A loss whose logits are linear in the features.

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]` training samples per class.
        beta: of the class-balanced weights, in [0, 1); None for no weights.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        beta: float | None,
    ) -> None:
        super().__init__(num_classes, embedding_dim, class_counts)
        self.head = nn.Linear(embedding_dim, num_classes)
        self.register_buffer("class_weights", balanced_weights(class_counts, beta))

    def logits(self, features: Tensor) -> Tensor:
        """W f + b `[B, C]` of features `[B, D]`."""
        return self.head(features)


class CrossEntropy(LinearHeadLoss):
    """Softmax cross-entropy, unweighted unless `beta` is given.

    With `beta` the terms bear the class-balanced weights that CFAL uses, averaged plainly: the
    control that separates the weights from the loss.

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]` training samples per class.
        label_smoothing: in [0, 1); the authors' CCT recipe has 0.1.
        beta: of the class-balanced weights, in [0, 1); None for no weights.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range.

    Example:
        >>> loss = CrossEntropy(9, 128, counts, label_smoothing=0.1)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        label_smoothing: float = 0.0,
        beta: float | None = None,
    ) -> None:
        super().__init__(num_classes, embedding_dim, class_counts, beta)
        self.label_smoothing = checks.number("label_smoothing", label_smoothing, minimum=0.0)
        if self.label_smoothing >= 1.0:
            raise ValueError(f"label_smoothing must be below 1, got {label_smoothing!r}")

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Mean loss of features `[B, D]` and classes `[B]`."""
        terms = functional.cross_entropy(
            self.logits(features),
            target,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return weighted_mean(terms, target, self.class_weights)


class Focal(LinearHeadLoss):
    """Class-balanced softmax focal loss, mean_i -omega_{y_i} (1 - p_i)^gamma log p_i.

    p_i is the posterior of the own class. Lin et al. (2017) with the binary alpha replaced by
    class-balanced weights, as the paper does (section III-A3).

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]` training samples per class.
        gamma: focus, >= 0; 0 gives weighted cross-entropy.
        beta: of the class-balanced weights, in [0, 1); None for no weights.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range.

    Example:
        >>> loss = Focal(9, 128, counts, gamma=2.0, beta=0.9999)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        gamma: float = 2.0,
        beta: float | None = 0.9999,
    ) -> None:
        super().__init__(num_classes, embedding_dim, class_counts, beta)
        self.gamma = checks.number("gamma", gamma, minimum=0.0)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Mean loss of features `[B, D]` and classes `[B]`."""
        logits = self.logits(features)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_p = -functional.cross_entropy(logits, target, reduction="none")  # [B]
        # 1 - p keeps its digits for p near 1. The floor is for p = 1 exactly, where the slope
        # gamma (1 - p)^(gamma - 1) of a gamma below 1 is infinite and would meet log p = 0.
        error = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return weighted_mean(-error.pow(self.gamma) * log_p, target, self.class_weights)
