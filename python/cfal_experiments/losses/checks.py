"""Checks of option values, with messages that name the option."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def number(
    name: str, value: Any, *, above: float | None = None, minimum: float | None = None
) -> float:
    """`value` as a finite float.

    Raises:
        TypeError: `value` is no number.
        ValueError: not finite, not greater than `above`, or less than `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    if above is not None and not value > above:
        raise ValueError(f"{name} must be greater than {above:g}, got {value!r}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum:g}, got {value!r}")
    return float(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """`value`, one of `choices`.

    Raises:
        ValueError: it is something else.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """`value` as it is, if it is True or False.

    Raises:
        TypeError: it is something else, the text "false" among them.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value
