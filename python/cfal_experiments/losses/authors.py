"""The loss that the authors' published code computes, to compare with Eq. 7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

import cfal_kernels as cfal
from cfal_experiments.losses import checks
from cfal_experiments.losses.base import balanced_weights
from cfal_experiments.losses.prototypes import PrototypeLoss


class CFALAuthorsCode(PrototypeLoss):
    """CFAL as the authors' code has it: a product of two means instead of a mean of products.

    In the code, weights (B,), focal factors (B, 1) and affinity losses (B,) broadcast to a (B, B)
    matrix, whose mean is

        mean_i[omega_{y_i} (1 - s_i)^gamma] * mean_j[L_j + rho R],   L_j the hinges of row j.

    The first mean carries no gradient there. So class weights and focus never act on their own
    sample: they scale the step of the batch as a whole. Two things of the code are not repeated:
    its prediction, whose argmax includes the output that holds R, and its NaN at s = 1.

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]` training samples per class.
        sigma: width of the affinity, or "auto".
        margin: lambda of the hinge.
        gamma: exponent of the focal factor, >= 0.
        beta: of the class-balanced weights, in [0, 1).
        diversity_weight: rho; 1 in the code.
        centers_per_class: M.
        init: "authors" or "class-means".
        backend: of the kernels; see `cfal_kernels.explain`.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range.

    Example:
        >>> loss = CFALAuthorsCode(9, 128, counts, gamma=1.0, beta=0.9999)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        sigma: float | Literal["auto"] = 130.0,
        margin: float = 0.1,
        gamma: float = 2.0,
        beta: float = 0.9999,
        diversity_weight: float = 1.0,
        centers_per_class: int = 1,
        init: Literal["authors", "class-means"] = "authors",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            class_counts,
            sigma,
            init,
            beta=None,  # the weights are this class's, as the factor is
            margin=margin,
            gamma=0.0,  # the head computes L_j + rho R
            diversity_weight=diversity_weight,
            centers_per_class=centers_per_class,
            backend=backend,
        )
        self.gamma = checks.number("gamma", gamma, minimum=0.0)
        self.register_buffer("class_weights", balanced_weights(class_counts, beta))

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The product of means of features `[B, D]` and classes `[B]`."""
        affinity_loss = super().forward(features, target)
        with torch.no_grad():
            q = cfal.squared_distances(features, self.head.prototypes)
            error = -torch.expm1(-q.gather(1, target[:, None])[:, 0] / self.head.sigma)  # 1 - s
            scale = (self.class_weights[target] * error.pow(self.gamma)).mean()
        return scale * affinity_loss
