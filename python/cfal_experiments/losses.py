"""Losses behind one interface: a module with its own head, `forward` and `predict_proba`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

import cfal_kernels as cfal


class CrossEntropy(nn.Module):
    """Softmax cross-entropy on a linear head, unweighted unless `beta` is given.

    With `beta`, the terms are multiplied by the class-balanced weights of Cui et al. (2019) and
    averaged plainly, as CFAL does; it is the control that separates the weights from the loss.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        beta: float | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        """Build the head; `class_counts` are those of the training part."""
        super().__init__()
        self.head = nn.Linear(embedding_dim, num_classes)
        weights = None if beta is None else cfal.class_balanced_weights(class_counts, beta)
        self.register_buffer("class_weights", weights)
        self.label_smoothing = label_smoothing

    def forward(self, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean loss of features `[B, D]` and targets `[B]`."""
        logits = self.head(features)
        terms = functional.cross_entropy(
            logits, target, reduction="none", label_smoothing=self.label_smoothing
        )
        if self.class_weights is not None:
            terms = self.class_weights[target] * terms
        return terms.mean()

    def predict_proba(self, features: torch.Tensor) -> torch.Tensor:
        """Class probabilities `[B, C]`."""
        return self.head(features).softmax(dim=1)


class CFAL(nn.Module):
    """Center-Focused Affinity Loss (Eq. 7) with class weights from the training counts."""

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        **options: float | bool | str,
    ) -> None:
        """Build the prototypes; `options` go to `cfal_kernels.CFALLoss`."""
        super().__init__()
        self.head = cfal.CFALLoss(num_classes, embedding_dim, class_counts=class_counts, **options)

    def forward(self, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean loss of features `[B, D]` and targets `[B]`."""
        return self.head(features, target)

    def predict_proba(self, features: torch.Tensor) -> torch.Tensor:
        """Class probabilities `[B, C]`: affinities to the prototypes, normalised."""
        return self.head.predict_proba(features)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "cross-entropy": CrossEntropy,
    "weighted cross-entropy": CrossEntropy,
    "cfal": CFAL,
}
