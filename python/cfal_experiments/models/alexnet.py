"""The AlexNet variant that the experiments on 32 x 32 IDC patches use."""

from __future__ import annotations

from torch import Tensor, nn

from cfal_experiments.models.base import EmbeddingModel


class AlexNet32(EmbeddingModel):
    """Small AlexNet for `[B, 3, 32, 32]` images (Janowczyk & Madabhushi 2016).

    It is Caffe's CIFAR10-quick. With a 2-way linear classifier on top it has 145,058 parameters.

    Args:
        embedding_dim: D, 64 in the original.

    Example:
        >>> AlexNet32()(torch.zeros(8, 3, 32, 32)).shape
        torch.Size([8, 64])
    """

    def __init__(self, *, embedding_dim: int = 64) -> None:
        super().__init__(embedding_dim, input_size=32)
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
        self.embedding = nn.Linear(64 * 4 * 4, embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images `[B, 3, 32, 32]` as `[B, D]`."""
        self.check(images)
        return self.embedding(self.features(images).flatten(1))
