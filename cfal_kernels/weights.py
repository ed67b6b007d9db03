"""Class weights by the effective number of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks


def class_balanced_weights(class_counts: Tensor | Sequence[int] | Any, beta: float) -> Tensor:
    """Class-balanced weights of Cui et al. (2019), scaled to sum to the number of classes.

    omega_c is proportional to (1 - beta) / (1 - beta^n_c). beta = 0 gives ones, beta -> 1 gives
    inverse frequency. (The paper on CFAL prints this fraction upside down in its Eq. 1; its code
    has it this way round.)

    Args:
        class_counts: [C] number of training samples per class, > 0; a list, an array or a tensor.
        beta: in [0, 1).

    Returns:
        [C] float32 on the CPU (on the device of `class_counts` if that is a tensor).

    Raises:
        TypeError: counts or beta are not numbers.
        ValueError: beta outside [0, 1), a count that is not positive and finite, counts that are
            not 1-D.

    Example:
        >>> class_balanced_weights([1, 100], beta=0.99)
        tensor([1.9689, 0.0311])
    """
    beta = check_beta(beta)
    counts = check_counts(class_counts)
    if beta == 0.0:
        return torch.ones_like(counts, dtype=torch.float32)
    # 1 - beta^n = -expm1(n log beta), which keeps its digits where beta^n is close to 1.
    raw = -(1.0 - beta) / torch.expm1(counts * math.log(beta))
    return (raw * (len(raw) / raw.sum())).to(torch.float32)


def check_beta(beta: Any) -> float:
    """`beta` as a float in [0, 1)."""
    number = _checks.real("beta", beta)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"beta must be in [0, 1), got {number!r}")
    return number


def check_counts(class_counts: Any, num_classes: int | None = None) -> Tensor:
    """`class_counts` as float64 [C], positive, of length `num_classes` if given."""
    counts = _numbers("class_counts", class_counts, torch.float64)
    if counts.dim() != 1 or counts.numel() == 0:
        raise ValueError(f"class_counts must be 1-D [C], got shape {list(counts.shape)}")
    if num_classes is not None and len(counts) != num_classes:
        raise ValueError(
            f"class_counts must hold one count per class, got {len(counts)} counts for num_classes "
            f"= {num_classes}"
        )
    bad = ~((counts > 0) & counts.isfinite())
    if bad.any():
        position = int(bad.nonzero()[0])
        raise ValueError(
            f"class_counts must be positive and finite, got {counts[position].item():g} for class "
            f"{position}"
        )
    return counts


def check_class_weights(class_weights: Any, num_classes: int) -> Tensor:
    """`class_weights` as a float32 tensor [num_classes], finite and not negative."""
    weights = _numbers("class_weights", class_weights, torch.float32)
    if weights.dim() != 1 or len(weights) != num_classes:
        raise ValueError(
            f"class_weights must have shape [{num_classes}], one per class of num_classes = "
            f"{num_classes}, got shape {list(weights.shape)}"
        )
    bad = ~((weights >= 0) & weights.isfinite())
    if bad.any():
        position = int(bad.nonzero()[0])
        raise ValueError(
            f"class_weights must be finite and >= 0, got {weights[position].item():g} for class "
            f"{position}"
        )
    return weights.clone()


def _numbers(name: str, values: Any, dtype: torch.dtype) -> Tensor:
    """Real numbers as a tensor; what is none yet becomes one on the CPU, whatever the default."""
    try:
        numbers = values
        if not isinstance(values, Tensor):
            # Of plain numbers: an array may be read-only, or run backwards.
            plain = values.tolist() if hasattr(values, "tolist") else values
            numbers = torch.tensor(plain, dtype=torch.float64, device="cpu")
        if numbers.is_complex():
            raise TypeError("complex")
        return numbers.detach().to(dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers [C], got {_checks.shown(values)}") from error
