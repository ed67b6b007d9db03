"""Posteriors of several systems as one: average, maximum confidence, or vote."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STRATEGIES = ("average", "max", "vote")


def combine(posteriors: Sequence[np.ndarray], strategy: str) -> np.ndarray:
    """Combine posteriors `[N, C]` of R systems, as the paper's ensembles of four do.

    Args:
        posteriors: R arrays for the same images and classes.
        strategy: "average": the mean of the posteriors. "max": for each image those of the system
            that is most confident, the first of equals. "vote": shares of the votes, ties broken
            by the mean posterior.

    Returns:
        `[N, C]` float64 that sums to 1 per row; the largest is the decision.

    Raises:
        ValueError: an unknown strategy.

    Example:
        >>> combine([np.array([[0.9, 0.1]]), np.array([[0.4, 0.6]])], "max")
        array([[0.9, 0.1]])
    """
    stacked = np.stack([np.asarray(each, dtype=np.float64) for each in posteriors])  # [R, N, C]
    mean = stacked.mean(0)
    if strategy == "average":
        return mean
    if strategy == "max":
        surest = stacked.max(2).argmax(0)  # [N]
        return stacked[surest, np.arange(stacked.shape[1])]
    if strategy == "vote":
        votes = np.eye(stacked.shape[2])[stacked.argmax(2)].mean(0)
        # Too small to outweigh one vote, and it leaves sums and order of the rest as they are.
        weight = 1e-3 / len(stacked)
        return (1 - weight) * votes + weight * mean
    raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
