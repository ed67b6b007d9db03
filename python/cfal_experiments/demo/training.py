"""The training loop: early stopping on a validation part, best weights restored."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cfal_experiments.demo.batches import Normalisation, batches
from cfal_experiments.demo.samples import Samples, Split


@dataclass(frozen=True)
class Budget:
    """What every loss of a comparison is given alike."""

    epochs: int
    patience: int
    batch_size: int = 32
    flips: bool = False


@dataclass(frozen=True)
class Recipe:
    """One loss with its own hyperparameters, chosen on validation parts."""

    loss: str
    options: Mapping[str, float | bool | str]
    learning_rate: float = 1e-3
    weight_decay: float = 0.01

    def optimizer(self, system: nn.Module) -> torch.optim.Optimizer:
        """AdamW on the model and the head (or prototypes) alike."""
        return torch.optim.AdamW(
            system.parameters(), self.learning_rate, weight_decay=self.weight_decay, fused=True
        )

    def __str__(self) -> str:
        """One line for people."""
        settings = {
            **self.options,
            "learning rate": self.learning_rate,
            "weight decay": self.weight_decay,
        }
        return f"{self.loss}: " + ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in settings.items()
        )


class System(nn.Module):
    """A model and the loss that owns its head."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        """Join both, so that one optimizer and one state dict hold them."""
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of a batch."""
        return self.loss(self.model(images), target)

    def predict_proba(self, images: torch.Tensor) -> torch.Tensor:
        """Class probabilities `[B, C]`."""
        return self.loss.predict_proba(self.model(images))


def fit(
    system: System,
    samples: Samples,
    split: Split,
    recipe: Recipe,
    budget: Budget,
    seed: int,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> int:
    """Train `system` in place and leave it with the weights of its best epoch.

    Args:
        system: what to train.
        samples: all images.
        split: the training rows are learned from, the validation rows decide when to stop.
        recipe: optimizer settings.
        budget: epochs, patience, batch size, flips.
        seed: of the order and the augmentation; the same seed gives every loss the same batches.
        on_epoch: called with the epoch (from 1) and its validation loss.

    Returns:
        The best epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    normalise = Normalisation.of(samples, split.train)
    optimizer = recipe.optimizer(system)
    best_loss, best_epoch = float("inf"), 0
    best_state = copy.deepcopy(system.state_dict())
    for epoch in range(1, budget.epochs + 1):
        system.train()
        for images, target in batches(
            samples,
            split.train,
            normalise,
            budget.batch_size,
            generator=generator,
            flips=budget.flips,
        ):
            optimizer.zero_grad(set_to_none=True)
            system(images, target).backward()
            optimizer.step()
        loss = mean_loss(system, samples, split.validation, normalise)
        on_epoch(epoch, loss)
        if loss < best_loss:
            best_loss, best_epoch = loss, epoch
            best_state = copy.deepcopy(system.state_dict())
        elif epoch - best_epoch >= budget.patience:
            break
    system.load_state_dict(best_state)
    return best_epoch


@torch.no_grad()
def mean_loss(
    system: System, samples: Samples, rows: np.ndarray, normalise: Normalisation
) -> float:
    """Mean loss over `rows`, without augmentation."""
    system.eval()
    total = sum(
        float(system(images, target)) * len(target)
        for images, target in batches(samples, rows, normalise, batch_size=512)
    )
    return total / len(rows)


@torch.no_grad()
def predict(
    system: System, samples: Samples, rows: np.ndarray, normalise: Normalisation
) -> np.ndarray:
    """Class probabilities `[len(rows), C]`."""
    system.eval()
    chunks = [
        system.predict_proba(images)
        for images, _ in batches(samples, rows, normalise, batch_size=512)
    ]
    return torch.cat(chunks).numpy()
