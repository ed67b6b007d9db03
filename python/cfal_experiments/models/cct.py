"""The Compact Convolutional Transformer of the paper's Table XIV."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cfal_experiments.models.base import EmbeddingModel


class CCT(EmbeddingModel):
    """Compact Convolutional Transformer (Hassani et al. 2021) in the size that the paper trains.

    It follows the Keras example that the authors started from, not the reference implementation:
    each attention head is as wide as the token, and the first of its stochastic depths is 0. Two
    convolutions make tokens (784 of them at 112 px), two transformer blocks mix them, and a learnt
    average pools them. 408,001 trainable parameters with the 9 x 128 prototypes of CFAL.

    Args:
        embedding_dim: D, width of the tokens and so of the embedding.
        blocks: transformer blocks.
        heads: attention heads of width D each.
        positions: what tells tokens apart: "fixed" adds random constants that are saved but never
            trained, which is what the example does; "learnable" trains them; "none" adds nothing.
        dropout: in attention weights and after each layer of the MLPs.
        stochastic_depth: of the last block; rises linearly from 0 at the first.
        input_size: S, >= 4.

    Raises:
        ValueError: an option out of range.

    Example:
        >>> CCT()(torch.zeros(8, 3, 112, 112)).shape
        torch.Size([8, 128])
    """

    smallest_input = 4

    def __init__(
        self,
        *,
        embedding_dim: int = 128,
        blocks: int = 2,
        heads: int = 2,
        positions: Literal["fixed", "learnable", "none"] = "fixed",
        dropout: float = 0.1,
        stochastic_depth: float = 0.1,
        input_size: int = 112,
    ) -> None:
        super().__init__(embedding_dim, input_size)
        if blocks < 1 or heads < 1:
            raise ValueError(f"blocks and heads must be at least 1, got {blocks} and {heads}")
        if positions not in ("fixed", "learnable", "none"):
            raise ValueError(f"positions must be fixed, learnable or none, got {positions!r}")
        if not 0.0 <= stochastic_depth < 1.0:
            raise ValueError(f"stochastic_depth must be in [0, 1), got {stochastic_depth!r}")
        self.tokenizer = Tokenizer(embedding_dim)
        tokens = self.tokenizer.side(input_size) ** 2
        # Uniform within 0.05: the initialisation of Keras's Embedding layer.
        start = None
        if positions != "none":
            start = torch.empty(1, tokens, embedding_dim).uniform_(-0.05, 0.05)
        if positions == "learnable":
            self.positions = nn.Parameter(start)
        else:
            self.register_buffer("positions", start)
        rates = [stochastic_depth * number / max(1, blocks - 1) for number in range(blocks)]
        self.blocks = nn.Sequential(*(Block(embedding_dim, heads, dropout, r) for r in rates))
        self.norm = nn.LayerNorm(embedding_dim, eps=1e-5)
        self.pool = nn.Linear(embedding_dim, 1)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images `[B, 3, S, S]` as `[B, D]`."""
        self.check(images)
        tokens = self.tokenizer(images)  # [B, N, D]
        if self.positions is not None:
            tokens = tokens + self.positions
        tokens = self.norm(self.blocks(tokens))
        weights = self.pool(tokens).softmax(dim=1)  # [B, N, 1]
        return (weights.transpose(1, 2) @ tokens)[:, 0]


class Tokenizer(nn.Module):
    """Two convolutions of 3 x 3, each with ReLU and a max-pool that halves the side.

    Args:
        embedding_dim: D, channels of the second one; the first has 64.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(3, 64, 3, bias=False), nn.Conv2d(64, embedding_dim, 3, bias=False)]
        )

    @staticmethod
    def side(size: int) -> int:
        """Tokens along one side of an image of that size."""
        for _ in range(2):
            # A valid convolution takes 2 pixels, the padding gives them back, the pool halves.
            size = (size + 1) // 2
        return size

    def forward(self, images: Tensor) -> Tensor:
        """Tokens `[B, N, D]` of images `[B, 3, S, S]`."""
        maps = images
        for convolution in self.convolutions:
            maps = functional.pad(functional.relu(convolution(maps)), (1, 1, 1, 1))
            # "same" pooling: ceil(n / 2) windows, centred as TensorFlow does it; the border is 0,
            # which no maximum over values from a ReLU can tell from minus infinity.
            before = maps.shape[-1] % 2
            maps = functional.max_pool2d(functional.pad(maps, (before, 1, before, 1)), 3, 2)
        return maps.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """A pre-norm transformer block with residual paths that are dropped at random.

    Args:
        width: D.
        heads: attention heads, each of width D.
        dropout: in attention weights and after each layer of the MLP.
        drop_path: probability of dropping a residual path, per sample.
    """

    def __init__(self, width: int, heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-5)
        self.attention = Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-5)
        self.mlp = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, N, D]` to the same shape."""
        tokens = tokens + self._thinned(self.attention(self.attention_norm(tokens)))
        return tokens + self._thinned(self.mlp(self.mlp_norm(tokens)))

    def _thinned(self, path: Tensor) -> Tensor:
        """Stochastic depth (Huang et al. 2016): whole samples dropped, the others scaled up."""
        if not self.training or self.drop_path == 0.0:
            return path
        keep = 1.0 - self.drop_path
        return path * path.new_empty(path.shape[0], 1, 1).bernoulli_(keep) / keep


class Attention(nn.Module):
    """Multi-head self-attention with heads as wide as the token, as Keras's `key_dim` sets them.

    Args:
        width: D.
        heads: H; queries, keys and values are H D wide together.
        dropout: of the attention weights.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, heads * width)
        self.key = nn.Linear(width, heads * width)
        self.value = nn.Linear(width, heads * width)
        self.out = nn.Linear(heads * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, N, D]` to the same shape."""
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, D]
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


def _initialise(module: nn.Module) -> None:
    """Keras's initialisations: He for convolutions, Glorot for dense layers, zeros for biases."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
