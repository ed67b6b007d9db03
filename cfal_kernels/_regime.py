"""Which kernels serve how many prototypes; the numbers are those of csrc/core/problem.h."""

from __future__ import annotations

FEW = 0
MANY = 1
NAMES = ("few", "many")

#: Up to this many centres K = C * M the kernels by direct differences serve, above it those built
#: on matrix products.
few_limit = 64


def of(centres: int) -> int:
    """`FEW` or `MANY` for K centres."""
    return FEW if centres <= few_limit else MANY
