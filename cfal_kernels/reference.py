"""The Center-Focused Affinity Loss as it is defined, in plain torch, written to be read.

Three steps have a gradient written by hand, each because autograd's own would cost digits or
memory: the distances (`pairwise.PairwiseSquared`), the focal factor and the diversity term.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from . import _arguments
from .pairwise import PairwiseSquared, compute_dtype, nearest_centre, pull, row_blocks


def cfal_loss(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    *,
    class_weights: Tensor | None = None,
    sigma: float = 130.0,
    margin: float = 0.1,
    gamma: float = 2.0,
    diversity_weight: float = 1.0,
    detach_focal: bool = False,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """The eager definition; same arguments, results and errors as `cfal_kernels.cfal_loss`.

    Any device, reverse-mode transforms of torch.func, and gradients of gradients; slow, and
    O(B C M D) in time for every shape.

    Example:
        >>> f, w = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> cfal_loss(f, w, torch.tensor([1]), sigma=1.0, gamma=0.0)    # 0.1 + 1 - exp(-1)
        tensor(0.7321)
    """
    class_weights, parameters = _arguments.check(
        features, prototypes, target, class_weights,
        sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index,
    )  # fmt: skip
    return run(features, prototypes, target, class_weights, parameters)


def run(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    parameters: _arguments.Parameters,
) -> Tensor:
    """The loss of arguments that have been checked, never downcast by autocast."""
    _arguments.check_layout(
        features=features, prototypes=prototypes, target=target, class_weights=class_weights
    )
    with _without_autocast(features.device.type):
        return _definition(features, prototypes, target, class_weights, *parameters)


def _definition(
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
    _: int,
) -> Tensor:
    dtype = compute_dtype(features, prototypes)
    w = prototypes.to(dtype)
    w = w[:, None, :] if w.dim() == 2 else w  # [C, M, D]
    classes, centres, _ = w.shape
    w = w.flatten(0, 1)  # [K, D], K = C M

    # Rows that are ignored become harmless zeros, whatever they hold, and drop out at the end.
    counted = target.long() != ignore_index  # [B]; in int32 a large ignore_index would wrap
    y = _class_indices(target, counted, classes, ignore_index)[:, None]  # [B, 1]
    f = torch.where(counted[:, None], features.to(dtype), 0.0)  # [B, D]

    # a_ij = exp(-q_ij / sigma), q_ij = min_m |f_i - w_jm|^2, s_i = a_i,y_i
    q = nearest_centre(PairwiseSquared.apply(f, w).view(-1, classes, centres))  # [B, C]
    a = torch.exp(-q / sigma)
    s = a.gather(1, y)

    # h_ij = max(0, lambda + a_ij - s_i) for j != y_i; relu's slope at 0 is 0
    own = torch.arange(classes, device=y.device) == y  # [B, C]
    h = torch.relu(margin + a - s).masked_fill(own, 0.0)

    # loss_i = omega_y (1 - s_i)^gamma (sum_j h_ij + rho R)
    loss = h.sum(1)
    if diversity_weight != 0.0 and w.shape[0] > 2:  # one pair of centres equals its own mean: R = 0
        loss = loss + diversity_weight * Diversity.apply(w)
    if gamma != 0.0:
        q_own = q.gather(1, y)[:, 0]
        loss = FocalFactor.apply(q_own.detach() if detach_focal else q_own, sigma, gamma) * loss
    if class_weights is not None:
        loss = class_weights.to(dtype)[y[:, 0]] * loss

    # 0 * x is 0 for finite x and NaN for inf and NaN: no max, min or exp above may hide them.
    loss = loss + (f.detach() * 0.0).sum(1) + (w.detach() * 0.0).sum()
    loss = torch.where(counted, loss, 0.0)
    if reduction == 0:
        return loss
    return loss.sum() / counted.sum() if reduction == 1 else loss.sum()


class FocalFactor(torch.autograd.Function):
    """The factor (1 - s)^gamma as a function of q = -sigma log s, for gamma > 0.

    1 - s = -expm1(-q / sigma) keeps its digits next to a prototype (s near 1). Its slope is s /
    sigma with s itself: autograd would compute it as (expm1(-q / sigma) + 1) / sigma, which has no
    digits left far from one (s near 0).
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        """Saves q."""
        q, ctx.sigma, ctx.gamma = inputs
        ctx.save_for_backward(q)

    @staticmethod
    def forward(q: Tensor, sigma: float, gamma: float) -> Tensor:
        """Returns the factor, shaped as q."""
        return (-torch.expm1(-q / sigma)).pow(gamma)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """Slope gamma (1 - s)^(gamma - 1) s / sigma, and 0 at s = 1 for every gamma."""
        (q,) = ctx.saved_tensors
        base = -torch.expm1(-q / ctx.sigma)
        # The power of a subnormal base may overflow where gamma < 1, and inf * 0 is NaN.
        floor = torch.finfo(q.dtype).tiny
        slope = ctx.gamma * base.clamp_min(floor).pow(ctx.gamma - 1.0)
        slope = slope * torch.exp(-q / ctx.sigma) / ctx.sigma
        return grad * torch.where(base == 0.0, 0.0, slope), None, None


class Diversity(torch.autograd.Function):
    """R = mean of (D_jk - mu)^2 over pairs j < k of w [K, D], D_jk = |w_j - w_k|^2, mu = mean D_jk.

    dR/dw_j = (4 / P) sum_k (D_jk - mu)(w_j - w_k) with P pairs; mu has no gradient of its own, sum
    (D_jk - mu) = 0. In float64 throughout: the centres spread evenly where training works, and D_jk
    - mu cancels there.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        """Saves w."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def forward(w: Tensor) -> Tensor:
        """Returns the scalar R."""
        count = w.shape[0]
        squares = sum(dev.square().sum() for _, _, dev in _deviations(_widest(w)))
        return (squares / (count * (count - 1))).to(w.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        """Returns the gradient of w; itself differentiable."""
        (w,) = ctx.saved_tensors
        pairs = w.shape[0] * (w.shape[0] - 1) / 2
        x = _widest(w)
        pulled = torch.cat([pull(x[i:j], x, dev) for i, j, dev in _deviations(x)])
        return grad * ((2.0 / pairs) * pulled).to(w.dtype)


def _deviations(w: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(i, j, rows i to j of D - mu), the diagonal set to 0 because j = k is no pair."""
    count = w.shape[0]
    blocks = row_blocks(count, count)
    mu = sum(PairwiseSquared.apply(w[i:j], w).sum() for i, j in blocks) / (count * (count - 1))
    index = torch.arange(count, device=w.device)
    for i, j in blocks:
        no_pair = index[i:j, None] == index
        yield i, j, torch.where(no_pair, 0.0, PairwiseSquared.apply(w[i:j], w) - mu)


def _widest(w: Tensor) -> Tensor:
    return w if w.device.type == "mps" else w.double()  # MPS has no float64


def _class_indices(target: Tensor, counted: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Targets as int64, ignored rows at class 0; out of range raises (CUDA: device assert)."""
    y = torch.where(counted, target, 0).long()
    try:
        # A gather checks its index where the device can, and not at all under tracing.
        return torch.arange(classes, device=y.device).gather(0, y)
    except (IndexError, RuntimeError) as error:
        message = _arguments.bad_target(target, classes, ignore_index)
        if message is None:
            raise
        raise message from error


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager:
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
