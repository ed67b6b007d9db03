"""Squared distances of rows to prototypes, for inference: by the compiled operators on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _arguments, ops
from .pairwise import PairwiseSquared, compute_dtype, nearest_centre, pull


class CompiledSquared(torch.autograd.Function):
    """`PairwiseSquared` by the operators of the CPU, which read every dtype as it is."""

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Saves f and w."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def forward(f: Tensor, w: Tensor) -> Tensor:
        """Returns q [B, K] in the compute type."""
        return torch.ops.cfal.squared_distances(f, w)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns the gradients of f and w; differentiable if that is asked for."""
        f, w = ctx.saved_tensors
        need_f, need_w = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph: the operators have no second derivative
            x, y = f.to(grad.dtype), w.to(grad.dtype)
            grad_f = pull(x, y, grad).to(f.dtype) if need_f else None
            return grad_f, pull(y, x, grad.t()).to(w.dtype) if need_w else None
        grad_f, grad_w = torch.ops.cfal.squared_distances_backward(grad, f, w, need_f, need_w)
        return grad_f if need_f else None, grad_w if need_w else None

    @staticmethod
    def vmap(info, in_dims: tuple, f: Tensor, w: Tensor) -> tuple[Tensor, int]:
        """Maps over f, w or both; one of them alone makes one larger call."""
        f = f if in_dims[0] is None else f.movedim(in_dims[0], 0)
        w = w if in_dims[1] is None else w.movedim(in_dims[1], 0)
        if in_dims[1] is None:
            return CompiledSquared.apply(f.flatten(0, 1), w).unflatten(0, f.shape[:2]), 0
        if in_dims[0] is None:
            return CompiledSquared.apply(f, w.flatten(0, 1)).unflatten(1, w.shape[:2]), 1
        return torch.stack([CompiledSquared.apply(*pair) for pair in zip(f, w, strict=True)]), 0


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
    classes, centres = (len(prototypes), 1) if prototypes.dim() == 2 else prototypes.shape[:2]
    f, w = features, prototypes.reshape(classes * centres, -1)
    if not ops.unavailable and f.device.type == w.device.type == "cpu":
        try:
            q = CompiledSquared.apply(f, w)
        except RuntimeError as error:
            if "are too large" in str(error):
                raise _arguments.too_large(f, w) from None
            raise
    else:
        dtype = compute_dtype(f, w)
        q = PairwiseSquared.apply(f.to(dtype), w.to(dtype))
    return nearest_centre(q.view(-1, classes, centres))
