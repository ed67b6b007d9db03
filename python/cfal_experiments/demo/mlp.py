"""A small fully connected network."""

from __future__ import annotations

import torch
from torch import nn


class MLP(nn.Module):
    """One hidden layer between the pixels and the embedding."""

    def __init__(self, inputs: int, hidden: int, embedding_dim: int) -> None:
        """Build the network with torch's default initialisation."""
        super().__init__()
        self.embedding_dim = embedding_dim
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, embedding_dim),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images `[B, ...]` as `[B, embedding_dim]`."""
        return self.layers(images)
