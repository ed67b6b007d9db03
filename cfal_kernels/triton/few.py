"""Few prototypes on the host: allocates, picks the launch shape, launches. Two launches a step.

Layout of the saved buffer, in elements of the compute type: the float64 part (HEAD scalars, the
pair distances [K, K], B + 4 partial sums) and then rows [B, K + 3] of coefficients.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from . import config, few_kernels, formulas
from .interpreter import double
from .tickets import tickets

NONE, MEAN, SUM = 0, 1, 2
TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}
_FINISH_ROWS = 1024


def saved_numel(rows: int, prototypes: int, itemsize: int) -> int:
    """Length of the saved buffer, from B, K and the itemsize of the compute type alone."""
    return _head_numel(rows, prototypes) * (8 // itemsize) + rows * (
        prototypes + few_kernels.ROW_EXTRA
    )


def _head_numel(rows: int, prototypes: int) -> int:
    return few_kernels.HEAD + prototypes * prototypes + rows + 4


def forward(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    sigma: float,
    margin: float,
    gamma: float,
    diversity_weight: float,
    detach_focal: bool,
    reduction: int,
    ignore_index: int,
    compute: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """The loss (scalar or [B]) and the saved buffer, empty unless `save`.

    One launch; two for the reduction "none" with a diversity term, since R is known only when the
    first has ended.

    Args:
        features: [B, D], any strides.
        prototypes: [C, M, D], any strides.
        target: [B] int64 or int32.
        class_weights: [C] or None.
        sigma: width.
        margin: hinge margin.
        gamma: focus.
        diversity_weight: weight of R.
        detach_focal: whether the focal factor is a constant for the gradient.
        reduction: 0 none, 1 mean, 2 sum.
        ignore_index: target of the rows to leave out.
        compute: float32 or float64.
        save: whether a backward may follow.
    """
    rows, dim = features.shape
    classes, centres, _ = prototypes.shape
    count = classes * centres
    diversity = diversity_weight != 0.0 and count > 2
    numel = saved_numel(rows, count, compute.itemsize)
    length = numel if save else _head_numel(rows, count) * (8 // compute.itemsize)
    saved = features.new_empty((length,), dtype=compute)
    loss = features.new_empty((rows,) if reduction == NONE else (), dtype=compute)
    padded_classes = config.power_of_two(classes)
    padded_centres = config.power_of_two(centres)
    padded = padded_classes * padded_centres
    tile = config.few_forward(rows, padded, dim, compute.itemsize)
    row_programs = max(1, -(-rows // tile.b_r))
    few_kernels.forward_kernel[(row_programs + (count if diversity else 0),)](
        features, prototypes, target, class_weights if class_weights is not None else target,
        loss, saved, tickets(features.device, 1),
        rows, row_programs, features.stride(0), features.stride(1), *prototypes.stride(),
        target.stride(0), class_weights.stride(0) if class_weights is not None else 0,
        ignore_index, double(sigma), double(margin), double(gamma), double(diversity_weight),
        C=classes, M=centres, D=dim, CP=padded_classes, MP=padded_centres,
        BR=tile.b_r, BD=tile.b_d, BP=tile.b_p, CT=TRITON_DTYPE[compute],
        KIND=formulas.gamma_kind(gamma), DETACH=detach_focal, WEIGHTS=class_weights is not None,
        DIVERSITY=diversity, REDUCTION=reduction, SAVE=save,
        num_warps=tile.num_warps, debug=True, sanitize_overflow=False,
    )  # fmt: skip
    if reduction == NONE and (diversity or save):
        few_kernels.finish_rows_kernel[(max(1, -(-rows // _FINISH_ROWS)),)](
            loss, saved, rows, double(diversity_weight),
            K=count, KP=config.power_of_two(count), DIVERSITY=diversity, BR=_FINISH_ROWS,
            num_warps=4,
        )  # fmt: skip
    return loss, saved if save else saved.new_empty((0,))


def backward(
    grad_loss: Tensor,
    saved: Tensor,
    features: Tensor,
    prototypes: Tensor,
    diversity_weight: float,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    """Both gradients in one launch, in the dtypes of their inputs; empty where not needed.

    Args:
        grad_loss: scalar, or [B] with any stride for the reduction "none"; float32 or float64.
        saved: as `forward` left it; read only.
        features: [B, D], as in the forward, like everything that follows.
        prototypes: [C, M, D].
        diversity_weight: weight of R.
        need_features: whether the gradient of the features is asked for.
        need_prototypes: likewise.
    """
    rows, dim = features.shape
    classes, centres, _ = prototypes.shape
    count = classes * centres
    grad_features = features.new_empty((rows, dim) if need_features else (0,))
    grad_prototypes = prototypes.new_empty(prototypes.shape if need_prototypes else (0,))
    if not (need_features and rows > 0 or need_prototypes):
        return grad_features, grad_prototypes
    padded = config.power_of_two(count)
    tile = config.few_backward(padded, dim, saved.element_size())
    tiles = -(-dim // tile.b_d)
    chunks = config.few_chunks(rows, tiles)
    chunk_rows = -(-rows // chunks)
    partial = ticket = saved
    if chunks > 1 and need_prototypes:
        parts = chunks * count * dim * saved.element_size() // 8 + 1
        partial = saved.new_empty((tiles * chunks + parts,), dtype=torch.float64)
        ticket = tickets(features.device, tiles)
    few_kernels.backward_kernel[(tiles, chunks)](
        grad_loss, saved, features, prototypes, grad_features, grad_prototypes, partial, ticket,
        rows, chunk_rows, grad_loss.stride(0) if grad_loss.dim() else 0,
        features.stride(0), features.stride(1), *prototypes.stride(), double(diversity_weight),
        C=classes, M=centres, D=dim, KP=padded, SPLIT=chunks > 1,
        BR=tile.b_r, BD=tile.b_d, CT=TRITON_DTYPE[saved.dtype],
        DIVERSITY=diversity_weight != 0.0 and count > 2,
        NEED_F=need_features, NEED_W=need_prototypes, num_warps=tile.num_warps,
    )  # fmt: skip
    return grad_features, grad_prototypes
