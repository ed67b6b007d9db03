"""What every loss of the experiments can do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import cfal_kernels as cfal


class HeadedLoss(nn.Module):
    """A loss together with the classifier ("head") that it trains.

    A model maps images to features `[B, D]` and knows nothing of classes. The head's parameters are
    the loss's, so that `[*model.parameters(), *loss.parameters()]` is everything there is to train,
    and a state dict of both is everything there is to save.

    Subclasses define `head`, `logits` and `forward`.

    Args:
        num_classes: C, >= 2.
        embedding_dim: D, >= 1.
        class_counts: `[C]` samples per class in the training part, each > 0.

    Attributes:
        needs_initialisation: the options ask for a start that depends on data: `initialise_from`
            must be called with features of the untrained model before the first step.

    Raises:
        ValueError: sizes that are too small, or counts that are not one per class.
    """

    head: nn.Module
    needs_initialisation: bool = False

    def __init__(self, num_classes: int, embedding_dim: int, class_counts: Sequence[int]) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")
        if len(class_counts) != num_classes:
            raise ValueError(
                f"class_counts must hold one count per class: {len(class_counts)} counts for "
                f"{num_classes} classes"
            )
        self.num_classes = num_classes
        self.embedding_dim = embedding_dim

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The mean loss, a scalar, of features `[B, D]` and classes `[B]` (int64)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def logits(self, features: Tensor) -> Tensor:
        """Scores `[B, C]` of features `[B, D]` whose softmax is the posterior; without margins."""
        raise NotImplementedError(f"{type(self).__name__} must define logits")

    def predict_proba(self, features: Tensor) -> Tensor:
        """Class probabilities `[B, C]` of features `[B, D]`, float32 or wider."""
        logits = self.logits(features)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)

    def initialise_from(self, features: Tensor, target: Tensor) -> None:
        """Adapt the head to an embedding before training, where the options ask for it.

        A distributed run must give every process the same rows: the result is not synchronised.

        Args:
            features: `[N, D]` of training samples, from the untrained model in evaluation mode;
                some hundred rows per class are enough.
            target: `[N]` their classes.
        """

    def report(self, features: Tensor, target: Tensor) -> dict[str, float]:
        """What a batch looks like to the loss, by name; empty where there is nothing to tell."""
        return {}


def balanced_weights(class_counts: Sequence[int], beta: float | None) -> Tensor | None:
    """Class-balanced weights `[C]` (Cui et al. 2019), or None for no weights at all."""
    return None if beta is None else cfal.class_balanced_weights(class_counts, beta)


def weighted_mean(terms: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
    """Plain mean of weighted terms, mean_i omega_{y_i} terms_i.

    Divided by the number of rows and not by the sum of the weights, as in the authors' code and in
    Cui et al.: torch's weighted mean would let a batch's mix of classes change the step.

    Args:
        terms: `[B]`.
        target: `[B]`.
        class_weights: `[C]`, or None for ones.
    """
    return (terms if class_weights is None else class_weights[target] * terms).mean()
