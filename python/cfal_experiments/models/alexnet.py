"""The AlexNet variant used for 32 x 32 IDC patches."""

from __future__ import annotations

import torch
from torch import nn


class AlexNet32(nn.Module):
    """Small AlexNet for `[B, 3, 32, 32]` images (Janowczyk & Madabhushi 2016).

    It is Caffe's CIFAR10-quick. With a 2-way linear classifier on top it has 145,058 parameters.
    """

    embedding_dim = 64

    def __init__(self) -> None:
        """Build the network with torch's default initialisation."""
        super().__init__()
        self.features = nn.Sequential(  # ceil_mode is Caffe's rounding: 32 -> 16 -> 8 -> 4
            nn.Conv2d(3, 32, 5, padding=2),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            nn.ReLU(),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(3, stride=2, ceil_mode=True),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(3, stride=2, ceil_mode=True),
        )
        self.embedding = nn.Linear(64 * 4 * 4, self.embedding_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images `[B, 3, 32, 32]` as `[B, 64]`."""
        return self.embedding(self.features(images).flatten(1))
