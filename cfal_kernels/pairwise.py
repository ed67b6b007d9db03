"""Squared distances by direct differences in plain PyTorch, in bounded memory, with a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of a block of differences: small enough for a cache, large enough to amortise the calls.
_BLOCK = 1 << 18


class PairwiseSquared(torch.autograd.Function):
    """q_ik = |f_i - w_k|^2 for f [B, D] and w [K, D], never through |f|^2 + |w|^2 - 2 f.w.

    dq_ik/df_i = 2 (f_i - w_k) = -dq_ik/dw_k. Autograd through a broadcast difference would hold [B,
    K, D].
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Saves f and w."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def forward(f: Tensor, w: Tensor) -> Tensor:
        """Returns q [B, K]."""
        # Not torch.cdist: the square root it takes costs digits of q / sigma, which the exponential
        # of a far row multiplies.
        blocks = [
            (f[i:j, None, :] - w).square().sum(2) for i, j in row_blocks(f.shape[0], w.numel())
        ]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns the gradients of f and w; itself differentiable."""
        f, w = ctx.saved_tensors
        need_f, need_w = ctx.needs_input_grad
        return pull(f, w, grad) if need_f else None, pull(w, f, grad.t()) if need_w else None


def pull(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """sum_k 2 g_nk (x_n - y_k) for x [N, D], y [K, D] and weights g [N, K], by blocks of rows."""
    blocks = [
        (2.0 * weight[i:j, :, None] * (x[i:j, None, :] - y)).sum(1)
        for i, j in row_blocks(x.shape[0], y.numel())
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def row_blocks(rows: int, elements_per_row: int) -> list[tuple[int, int]]:
    """Ranges that cut `rows` so that a block holds about 2^18 elements.

    One block while a compiler traces: it fuses the differences into their sum, and a loop would be
    traced again for every number of rows.
    """
    if torch.compiler.is_compiling() or rows * elements_per_row <= _BLOCK:
        return [(0, rows)]
    step = max(1, _BLOCK // elements_per_row)
    return [(i, min(i + step, rows)) for i in range(0, rows, step)]


def nearest_centre(q: Tensor) -> Tensor:
    """Minimum over the last dimension of q [B, C, M]; ties to the lowest index, NaN stays."""
    if q.shape[2] == 1:
        return q[:, :, 0]
    return q.gather(2, q.argmin(dim=2, keepdim=True))[:, :, 0]


def compute_dtype(features: Tensor, prototypes: Tensor) -> torch.dtype:
    """float64 if either input is float64, else float32."""
    double = torch.float64
    return double if double in (features.dtype, prototypes.dtype) else torch.float32
