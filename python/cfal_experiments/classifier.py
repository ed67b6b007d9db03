"""A whole system: from bytes to class probabilities, and to the loss in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cfal_experiments import losses, models
from cfal_experiments.data.loading import Normalise
from cfal_experiments.data.normalisation import Normalisation
from cfal_experiments.losses import HeadedLoss
from cfal_experiments.training.config import LossConfig, ModelConfig


class Classifier(nn.Module):
    """Normalisation, model, and loss with its head, as one module with one state dict.

    Args:
        normalise: bytes to floats.
        model: images to features `[B, D]`.
        loss: features to the loss, or to class probabilities.
    """

    def __init__(self, normalise: Normalise, model: nn.Module, loss: HeadedLoss) -> None:
        super().__init__()
        self.normalise = normalise
        self.model = model
        self.loss = loss

    def features(self, images: Tensor) -> Tensor:
        """Embed images `[B, 3, H, W]` uint8 as `[B, D]`."""
        return self.model(self.normalise(images))

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """The mean loss of images `[B, 3, H, W]` uint8 of classes `[B]`."""
        return self.loss(self.features(images), target)

    @torch.no_grad()
    def predict_proba(self, images: Tensor) -> Tensor:
        """Class probabilities `[B, C]` of images `[B, 3, H, W]` uint8."""
        return self.loss.predict_proba(self.features(images))


def build_model(config: ModelConfig, seed: int = 0) -> nn.Module:
    """The model that a configuration names; the seed alone decides its initial weights.

    Raises:
        InputError: an unknown name or option.
    """
    torch.manual_seed(seed)
    return models.build(config.name, **config.arguments())


def build(
    model: nn.Module,
    loss_config: LossConfig,
    class_counts: Sequence[int],
    normalisation: Normalisation,
    seed: int = 0,
) -> Classifier:
    """An untrained system.

    Args:
        model: images to features; has `embedding_dim`.
        loss_config: which loss.
        class_counts: `[C]` images per class in the training part.
        normalisation: per-channel constants.
        seed: of the head's initial weights.

    Raises:
        InputError: an unknown name or option.
    """
    torch.manual_seed(seed)
    loss = losses.build(
        loss_config.name,
        len(class_counts),
        model.embedding_dim,
        class_counts,
        **loss_config.arguments(),
    )
    classifier = Classifier(Normalise(normalisation), model, loss)
    return classifier.to(memory_format=torch.channels_last)
