"""`torch.ops.cfal_triton.forward` and `.backward`: schemas, fakes, and the way to the regimes.

The operators are defined in Python and need no compiled object. They are opaque to a compiler, so
sigma, margin and gamma reach the kernels as they are: never promoted to arithmetic in float64 in
kernels for float32, and in full for float64 inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _arguments
from .._regime import FEW
from ..ops import Operators
from ..pairwise import compute_dtype
from . import few, interpreter, many, many_saved

_INPUTS = "Tensor features, Tensor prototypes, Tensor target, Tensor? class_weights"
_PARAMETERS = (
    "float sigma, float margin, float gamma, float diversity_weight, bool detach_focal, "
    "int reduction, int ignore_index, int regime"
)

_LIBRARY = torch.library.Library("cfal_triton", "DEF")
_LIBRARY.define(f"forward({_INPUTS}, {_PARAMETERS}, bool save) -> (Tensor loss, Tensor saved)")
_LIBRARY.define(
    f"backward(Tensor grad_loss, Tensor saved, {_INPUTS}, {_PARAMETERS}, bool need_features, "
    f"bool need_prototypes) -> (Tensor grad_features, Tensor grad_prototypes)"
)


def _forward(
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
    regime: int,
    save: bool,
) -> tuple[Tensor, Tensor]:
    if features.is_cpu:
        interpreter.repair()
        bad = _arguments.bad_target(target, prototypes.shape[0], ignore_index)
        if bad is not None:
            raise RuntimeError(f"cfal: {bad}")
    compute = compute_dtype(features, prototypes)
    kernels = few if regime == FEW else many
    with _on(features):
        return kernels.forward(
            features, prototypes, target, class_weights, sigma, margin, gamma, diversity_weight,
            detach_focal, reduction, ignore_index, compute, save,
        )  # fmt: skip


def _backward(
    grad_loss: Tensor,
    saved: Tensor,
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
    regime: int,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    if features.is_cpu:
        interpreter.repair()
    needs = (need_features, need_prototypes)
    with _on(features):
        if regime == FEW:
            return few.backward(
                grad_loss, saved, features, prototypes, diversity_weight, *needs
            )  # fmt: skip
        return many.backward(
            grad_loss, saved, features, prototypes, sigma, margin, diversity_weight, *needs
        )  # fmt: skip


class _Nothing:
    """A context manager that does nothing, made once."""

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


_NOTHING = _Nothing()


def _on(tensor: Tensor):
    """Triton launches on the current device: makes it that of `tensor` where it is not."""
    if tensor.is_cpu or tensor.device.index == torch.cuda.current_device():
        return _NOTHING
    return torch.cuda.device(tensor.device)


def _fake_forward(
    features, prototypes, target, class_weights, sigma, margin, gamma, diversity_weight,
    detach_focal, reduction, ignore_index, regime, save,
):  # fmt: skip
    dtype = compute_dtype(features, prototypes)
    rows = features.shape[0]
    count = prototypes.shape[0] * prototypes.shape[1]
    loss = features.new_empty((rows,) if reduction == 0 else (), dtype=dtype)
    numel = 0
    if save and regime == FEW:
        numel = few.saved_numel(rows, count, dtype.itemsize)
    elif save:
        numel = many_saved.saved_numel(features, prototypes, dtype)
    return loss, features.new_empty((numel,), dtype=dtype)


def _fake_backward(
    grad_loss, saved, features, prototypes, target, class_weights, sigma, margin, gamma,
    diversity_weight, detach_focal, reduction, ignore_index, regime, need_features,
    need_prototypes,
):  # fmt: skip
    return (
        features.new_empty(features.shape if need_features else (0,)),
        prototypes.new_empty(prototypes.shape if need_prototypes else (0,)),
    )


for _key in ("CUDA", "CPU") if interpreter.enabled() else ("CUDA",):
    _LIBRARY.impl("forward", _forward, _key)
    _LIBRARY.impl("backward", _backward, _key)
torch.library.register_fake("cfal_triton::forward", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("cfal_triton::backward", _fake_backward, lib=_LIBRARY)

#: The pair that `autograd.apply` takes.
OPERATORS = Operators(torch.ops.cfal_triton.forward.default, torch.ops.cfal_triton.backward.default)
