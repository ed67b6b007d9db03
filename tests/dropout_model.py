"""A model that a configuration names by import path: small, and random in training."""

from __future__ import annotations

import torch
from torch import nn


class DropoutNet(nn.Module):
    """Images `[B, 3, 8, 8]` to `[B, 6]`, with dropout."""

    embedding_dim = 6
    input_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 6)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)
