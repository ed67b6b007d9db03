"""Progress bars on standard error, so that standard output holds results only."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(total: int, what: str, unit: str) -> tqdm:
    """A bar that redraws seldom where the output is a file and not a terminal."""
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )
