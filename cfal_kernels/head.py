"""The prototypes as a layer of the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import _arguments, _checks
from .distance import squared_distances
from .initialization import authors_


class PrototypeHead(nn.Module):
    """The classifier of the Center-Focused Affinity Loss, living in the model it classifies for.

    Its logits are -q_ij / sigma with q_ij the squared distance to the nearest centre of class j, so
    softmax and argmax of them are the paper's decision rule: softmax(-q / sigma)_j = a_j / sum_k
    a_k. As part of the model its prototypes reach the optimizer, DistributedDataParallel and
    checkpoints by themselves; `CFALLoss.from_head` trains it.

    Args:
        embedding_dim: D, >= 1.
        num_classes: C, >= 1.
        centers_per_class: M, >= 1.
        sigma: width of the affinity, > 0.
        device: of the prototypes.
        dtype: of the prototypes, float32 unless given.

    Attributes:
        prototypes: parameter [C, M, D], normal with std sqrt(2 / C); see `initialize_prototypes_`
            for class means.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Example:
        >>> model = nn.Sequential(backbone, cfal.PrototypeHead(128, 9))
        >>> loss_fn = cfal.CFALLoss.from_head(model[1])
        >>> loss = loss_fn(model[0](images), target)      # the loss takes the features
        >>> classes = model(images).argmax(1)             # the model gives logits
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        *,
        centers_per_class: int = 1,
        sigma: float = 130.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embedding_dim = _checks.whole_number("embedding_dim", embedding_dim, minimum=1)
        self.num_classes = _checks.whole_number("num_classes", num_classes, minimum=1)
        self.centers_per_class = _checks.whole_number(
            "centers_per_class", centers_per_class, minimum=1
        )
        self.sigma = _checks.hyperparameters(sigma, 0.0, 0.0, 0.0)[0]
        shape = (self.num_classes, self.centers_per_class, self.embedding_dim)
        self.prototypes = nn.Parameter(
            torch.empty(shape, device=device, dtype=_arguments.parameter_dtype(dtype))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the prototypes anew."""
        authors_(self.prototypes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits -q / sigma [B, C] of features [B, D], in float32 (float64 for float64)."""
        return -squared_distances(features, self.prototypes) / self.sigma

    def extra_repr(self) -> str:
        """Shapes and sigma."""
        return (
            f"{self.embedding_dim}, {self.num_classes}, "
            f"centers_per_class={self.centers_per_class}, sigma={self.sigma:.15g}"
        )
