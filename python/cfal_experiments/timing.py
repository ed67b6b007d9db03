"""Time per step, measured fairly on a machine that does other things as well."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved_medians(
    steps: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 5
) -> dict[str, float]:
    """Median seconds of each step, the steps taking turns so that all meet the same load."""
    for _ in range(warmup):
        for step in steps.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
