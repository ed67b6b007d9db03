"""Progress bars on standard error, so that standard output holds results only."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(
    total: int | None, what: str, unit: str, *, initial: int = 0, unit_scale: bool = False
) -> tqdm:
    """A bar that redraws seldom where the output is a file and not a terminal.

    Args:
        total: how much there is to do, or None where unknown.
        what: what is being done.
        unit: what is counted.
        initial: what an earlier run has done already.
        unit_scale: count in thousands, millions and so on.
    """
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        initial=initial,
        unit_scale=unit_scale,
        file=sys.stderr,
        dynamic_ncols=True,
        delay=0.3,  # what is done or refused at once needs no bar
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )
