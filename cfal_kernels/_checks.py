"""What every door checks and how it says so, in terms of plain Python values: no torch, no arrays.

The hot path asks a few yes/no questions of its own (`_arguments.py`) and comes here only when an
answer is no, to find the precise message.
"""

from __future__ import annotations

import math
import operator
from typing import Any

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def hyperparameters(
    sigma: Any, margin: Any, gamma: Any, diversity_weight: Any
) -> tuple[float, float, float, float]:
    """The four hyperparameters as floats; TypeError or ValueError names the one that is off."""
    sigma = real("sigma", sigma)
    margin = real("margin", margin)
    gamma = real("gamma", gamma)
    diversity_weight = real("diversity_weight", diversity_weight)
    if not sigma > 0.0:
        raise ValueError(f"sigma must be > 0, got {sigma!r}")
    if not gamma >= 0.0:
        raise ValueError(f"gamma must be >= 0, got {gamma!r}")
    return sigma, margin, gamma, diversity_weight


def real(name: str, value: Any) -> float:
    """`value` as a finite float; raises TypeError or ValueError naming it."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got the bool {value!r}")
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if getattr(value, "requires_grad", False):
        raise TypeError(
            f"{name} is a constant of the loss and gets no gradient, but a tensor that requires "
            f"grad was given; pass {name}.item()"
        )
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError(f"{name} must be finite, got an int beyond the largest float") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from error
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number!r}")
    return number


def reduction_code(reduction: Any) -> int:
    """0, 1 or 2 for "none", "mean", "sum"."""
    if not isinstance(reduction, str):
        raise TypeError(f"reduction must be a string, got {type(reduction).__name__}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of 'none', 'mean', 'sum', got {reduction!r}")
    return REDUCTIONS[reduction]


def whole_number(name: str, value: Any, *, minimum: int | None = None) -> int:
    """`value` as an int (NumPy integers count); raises TypeError or ValueError otherwise."""
    try:
        # NumPy and torch give arrays an __index__ that raises for all but one integer.
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be an int, got {shown(value)}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {number}")
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must fit into 64 bits, got {number}")
    return number


def flag(name: str, value: Any) -> bool:
    """`value` as a bool; only bools (NumPy's too) are taken."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise TypeError(f"{name} must be a bool, got {shown(value)}")


def shown(value: Any) -> str:
    """`value` as a message gives it: a plain value itself, of anything larger only the type."""
    plain = value is None or isinstance(value, (bool, int, float, str))
    return repr(value) if plain else type(value).__name__


def shapes(
    features: tuple[int, ...],
    prototypes: tuple[int, ...],
    target: tuple[int, ...] | None,
    class_weights: tuple[int, ...] | None,
) -> None:
    """Raises ValueError where the shapes do not fit one another; `None` is an absent argument."""
    if len(features) != 2:
        raise ValueError(f"features must be 2-D [B, D], got shape {list(features)}")
    if len(prototypes) not in (2, 3):
        raise ValueError(f"prototypes must be [C, D] or [C, M, D], got shape {list(prototypes)}")
    if features[1] != prototypes[-1]:
        raise ValueError(
            f"features and prototypes must agree in their last dimension, got features "
            f"{list(features)} with D = {features[1]} and prototypes {list(prototypes)} with D = "
            f"{prototypes[-1]}"
        )
    if features[1] == 0:
        raise ValueError(
            f"features and prototypes need at least one dimension (D >= 1), got features "
            f"{list(features)} and prototypes {list(prototypes)}"
        )
    if prototypes[0] == 0 or prototypes[-2] == 0:
        raise ValueError(
            f"prototypes must hold at least one class with one centre, got shape {list(prototypes)}"
        )
    if target is not None:
        if len(target) != 1:
            raise ValueError(
                f"target must be 1-D [B] class indices, got shape {list(target)} for features "
                f"{list(features)}"
            )
        if target[0] != features[0]:
            raise ValueError(
                f"target must hold one class per row of features, got {target[0]} targets for "
                f"{features[0]} rows"
            )
    if class_weights is not None and class_weights != (prototypes[0],):
        raise ValueError(
            f"class_weights must have shape [{prototypes[0]}], one per class of prototypes "
            f"{list(prototypes)}, got shape {list(class_weights)}"
        )


def target_out_of_range(value: int, position: int, classes: int, ignore_index: int) -> str:
    """The message for a target that is neither a class nor `ignore_index`."""
    return (
        f"target holds {value} at position {position}, outside [0, {classes}) for {classes} "
        f"classes (ignore_index = {ignore_index})"
    )
