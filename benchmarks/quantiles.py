"""What a row of the CSV says about repeated measurements."""

from __future__ import annotations

import statistics


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """The 20, 50 and 80 % quantiles."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[1], statistics.median(values), tenths[7]
