"""A wider AlexNet for small images, with two fully connected layers."""

from __future__ import annotations

from torch import Tensor, nn

from cfal_experiments.models.base import EmbeddingModel


class WideAlexNet(EmbeddingModel):
    """The five convolutions of Krizhevsky et al. (2012) for small images, then FC1 and FC2.

    The paper's Fig. 2 draws two fully connected layers where AlexNet-32 has one. Widths (64, 192,
    384, 256, 256) are those of the common one-column AlexNet; its strides are left out, for there
    is little to stride over. FC2 is the embedding and bears no ReLU.

    Args:
        embedding_dim: D, width of FC2.
        hidden: width of FC1.
        dropout: before FC1 and before FC2.
        input_size: S, >= 8.

    Example:
        >>> WideAlexNet(embedding_dim=128)(torch.zeros(8, 3, 32, 32)).shape
        torch.Size([8, 128])
    """

    smallest_input = 8

    def __init__(
        self,
        *,
        embedding_dim: int = 128,
        hidden: int = 1024,
        dropout: float = 0.5,
        input_size: int = 32,
    ) -> None:
        super().__init__(embedding_dim, input_size)
        self.features = nn.Sequential(  # 32 -> 16 -> 8 -> 4
            nn.Conv2d(3, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        side = input_size // 8
        self.embedding = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * side * side, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, embedding_dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embed images `[B, 3, S, S]` as `[B, D]`."""
        self.check(images)
        return self.embedding(self.features(images).flatten(1))
