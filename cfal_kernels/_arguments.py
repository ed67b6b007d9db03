"""Checks of the tensor arguments: a few attribute reads if all is well, else a precise message."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _checks, _regime

_INF = math.inf
_LEAST, _LARGEST = -(2**63), 2**63 - 1
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.int64, torch.int32)
_WEIGHTS = (torch.float32, torch.float64)

# sigma, margin, gamma, diversity_weight, detach_focal, reduction (0 none, 1 mean, 2 sum),
# ignore_index: in the order of the operators, and one object, because every argument that travels
# costs time.
Parameters = tuple[float, float, float, float, bool, int, int]


def check(
    features: Any,
    prototypes: Any,
    target: Any,
    class_weights: Any,
    sigma: Any,
    margin: Any,
    gamma: Any,
    diversity_weight: Any,
    detach_focal: Any,
    reduction: Any,
    ignore_index: Any,
) -> tuple[Tensor | None, Parameters]:
    """Checks a call from metadata alone.

    Returns:
        ``class_weights`` and the `Parameters` in plain types.

    Raises:
        TypeError: a wrong type or dtype, naming the argument.
        ValueError: a wrong value, shape or device, naming the arguments and both sizes.
    """
    if not (
        type(sigma) is float
        and 0.0 < sigma < _INF
        and type(margin) is float
        and -_INF < margin < _INF
        and type(gamma) is float
        and 0.0 <= gamma < _INF
        and type(diversity_weight) is float
        and -_INF < diversity_weight < _INF
    ):
        sigma, margin, gamma, diversity_weight = _checks.hyperparameters(
            sigma, margin, gamma, diversity_weight
        )
    if type(detach_focal) is not bool:
        detach_focal = _checks.flag("detach_focal", detach_focal)
    if type(ignore_index) is not int or not _LEAST <= ignore_index <= _LARGEST:
        ignore_index = _checks.whole_number("ignore_index", ignore_index)
    code = (
        1 if reduction == "mean"
        else 0 if reduction == "none"
        else 2 if reduction == "sum"
        else _checks.reduction_code(reduction)
    )  # fmt: skip

    try:
        f, w, y = features.shape, prototypes.shape, target.shape
        fine = (
            features.dtype in _FLOATS
            and prototypes.dtype in _FLOATS
            and target.dtype in _INTEGERS
            and len(f) == 2
            and len(y) == 1
            and (len(w) == 3 or len(w) == 2)
            and f[0] == y[0]
            and f[1] == w[-1]
            and f[1] > 0
            and w[0] > 0
            and w[-2] > 0
            and features.is_cpu
            and prototypes.is_cpu
            and target.is_cpu
        )
    except (AttributeError, RuntimeError):  # no tensor; a nested one has no shape
        fine = False
    if not fine:
        _explain_tensors(features, prototypes, target)
    if class_weights is not None:
        class_weights = _check_weights(features, prototypes, class_weights)
    regime = _regime.of(w[0] if len(w) == 2 else w[0] * w[1])
    return class_weights, (
        sigma, margin, gamma, diversity_weight, detach_focal, code, ignore_index, regime,
    )  # fmt: skip


def parameter_dtype(dtype: Any) -> torch.dtype:
    """The dtype of new prototypes: float32 for None; TypeError unless the loss computes in it."""
    if dtype is None:
        return torch.float32
    if dtype not in _FLOATS:
        given = dtype if isinstance(dtype, torch.dtype) else _checks.shown(dtype)
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {given}")
    return dtype


def check_inference(features: Any, prototypes: Any = None, target: Any = None) -> None:
    """`check` for calls without a loss: features [B, D], prototypes and target where given."""
    others = {"prototypes": prototypes, "target": target}
    others = {name: value for name, value in others.items() if value is not None}
    _check_types(features=features, **others)
    centres = (1, *features.shape[-1:]) if prototypes is None else tuple(prototypes.shape)
    labels = None if target is None else tuple(target.shape)
    _checks.shapes(tuple(features.shape), centres, labels, None)
    _same_device(features, **others)


def _check_weights(features: Tensor, prototypes: Tensor, class_weights: Any) -> Tensor:
    if not isinstance(class_weights, Tensor):
        raise TypeError(f"class_weights must be a tensor [C], got {type(class_weights).__name__}")
    shape = class_weights.shape
    if len(shape) != 1 or shape[0] != prototypes.shape[0]:
        _checks.shapes(tuple(features.shape), tuple(prototypes.shape), None, tuple(shape))
    if not (features.is_cpu and class_weights.is_cpu):
        _same_device(features, class_weights=class_weights)
    if class_weights.requires_grad:
        raise ValueError("class_weights must not require grad: the loss has no gradient for them")
    if class_weights.dtype not in _WEIGHTS:
        if class_weights.dtype not in _FLOATS:
            raise TypeError(f"class_weights must be float32 or float64, got {class_weights.dtype}")
        class_weights = class_weights.float()
    return class_weights


def _explain_tensors(features: Any, prototypes: Any, target: Any) -> None:
    """Raises for what is wrong; returns if the tensors merely share another device."""
    _check_types(features=features, prototypes=prototypes, target=target)
    _checks.shapes(tuple(features.shape), tuple(prototypes.shape), tuple(target.shape), None)
    _same_device(features, prototypes=prototypes, target=target)


def _check_types(**tensors: Any) -> None:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        check_layout(**{name: value})
        if name == "target":
            if value.dtype not in _INTEGERS:
                raise TypeError(
                    f"target must hold class indices as int64 (or int32), got {value.dtype}; "
                    f"convert it with target.long()"
                )
        elif value.dtype not in _FLOATS:
            raise TypeError(
                f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}"
            )


def check_layout(**tensors: Tensor | None) -> None:
    """TypeError for a sparse, nested or otherwise strideless tensor; for explaining a failure."""
    for name, value in tensors.items():
        if value is not None and value.is_nested:
            raise TypeError(f"{name} must be a dense (strided) tensor, got a nested one")
        if value is not None and value.layout != torch.strided:
            raise TypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")


def _same_device(features: Tensor, **others: Tensor) -> None:
    for name, value in others.items():
        if value.device != features.device:
            raise ValueError(
                f"features and {name} must be on one device, got features on {features.device} and "
                f"{name} on {value.device}"
            )


def too_large(features: Tensor, prototypes: Tensor) -> ValueError:
    """The error for sizes that the kernels refuse; an expanded view can have any."""
    return ValueError(
        f"features {list(features.shape)} and prototypes {list(prototypes.shape)} are too large: "
        f"sizes must multiply to less than 2^56"
    )


def bad_target(target: Tensor, classes: int, ignore_index: int) -> ValueError | None:
    """The error for the first target that is neither a class nor `ignore_index`; reads the data."""
    # In int32 a large ignore_index would wrap.
    bad = ((target < 0) | (target >= classes)) & (target.long() != ignore_index)
    positions = bad.nonzero()
    if len(positions) == 0:
        return None
    position = int(positions[0])
    return ValueError(
        _checks.target_out_of_range(int(target[position]), position, classes, ignore_index)
    )
