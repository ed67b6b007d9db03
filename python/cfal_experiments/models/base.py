"""What a model of the experiments says about itself."""

from __future__ import annotations

from torch import Tensor, nn


class EmbeddingModel(nn.Module):
    """A network from square RGB images to vectors.

    Args:
        embedding_dim: D, length of the vectors, >= 1.
        input_size: S, side of the images in pixels.

    Raises:
        ValueError: a size that is too small.
    """

    #: The smallest S that the layers of a subclass leave anything of.
    smallest_input = 1

    def __init__(self, embedding_dim: int, input_size: int) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")
        if input_size < self.smallest_input:
            raise ValueError(f"input_size must be at least {self.smallest_input}, got {input_size}")
        self.embedding_dim = embedding_dim
        self.input_size = input_size

    def check(self, images: Tensor) -> None:
        """Refuse images that are not `[B, 3, S, S]`.

        Raises:
            ValueError: another shape; the message has both.
        """
        expected = (3, self.input_size, self.input_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"{type(self).__name__} takes images [B, {', '.join(map(str, expected))}], got "
                f"{list(images.shape)}"
            )
