"""Squared distances by direct differences, in bounded memory, with a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _arguments

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
    """Ranges that cut `rows` so that a block holds about 2^18 elements."""
    if (
        rows * elements_per_row <= _BLOCK
    ):  # one block, without a loop over a size that tracing keeps symbolic
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


def squared_distances(features: Tensor, prototypes: Tensor) -> Tensor:
    """Squared distance of every row to the nearest centre of every class.

    q_ij = min_m |f_i - w_jm|^2, by direct differences; differentiable, never holding [B, C, D].

    Args:
        features: [B, D], float16, bfloat16, float32 or float64.
        prototypes: [C, D] or [C, M, D], same dtypes.

    Returns:
        [B, C] in float32, float64 if either input is float64.

    Raises:
        TypeError: not a floating tensor.
        ValueError: shapes or devices that do not fit.

    Example:
        >>> squared_distances(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([[25.,  1.]])
    """
    _arguments.check_inference(features, prototypes)
    dtype = compute_dtype(features, prototypes)
    f, w = features.to(dtype), prototypes.to(dtype)
    classes, centres = (w.shape[0], 1) if w.dim() == 2 else w.shape[:2]
    q = PairwiseSquared.apply(f, w.reshape(classes * centres, -1))
    return nearest_centre(q.view(-1, classes, centres))
