"""Long-tailed training sets: thin a data set to a profile of class sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cfal_experiments.errors import InputError

#: The paper's long-tailed CRC set (Fig. 7): 58,000 images, ADI 5.2 % and TUM 19.0 % of them.
CRC_TOTAL, CRC_FIRST, CRC_LAST = 58_000, 0.052, 0.190


def geometric_profile(
    num_classes: int,
    first: float = CRC_FIRST,
    last: float = CRC_LAST,
    total: int = CRC_TOTAL,
) -> list[int]:
    """Class sizes that run geometrically from a share `first` of `total` to a share `last`.

    The sizes between the ends are first * (last / first)^(k / (C - 1)), scaled by one factor so
    that all sizes add up to `total`. The paper prints the two ends only; what lies between is this
    package's choice.

    Raises:
        InputError: the shares leave nothing for the classes between them.

    Example:
        >>> geometric_profile(4, 0.1, 0.4, 1000)
        [100, 193, 307, 400]
    """
    if num_classes < 3 or not (first > 0 and last > 0 and first + last < 1 and total > 0):
        raise InputError(
            f"no long tail of {num_classes} classes from {first:g} to {last:g} of {total}; give "
            "three or more classes and shares that add up to less than 1"
        )
    shares = first * (last / first) ** (np.arange(num_classes) / (num_classes - 1))
    shares[1:-1] *= (1 - first - last) / shares[1:-1].sum()
    sizes = np.round(shares * total).astype(int)
    sizes[-2] += total - sizes.sum()  # what rounding left over
    return sizes.tolist()


def thin(
    rows: np.ndarray,
    labels: np.ndarray,
    sizes: Sequence[int],
    seed: int,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw `sizes[c]` of the rows of each class `c`, without replacement.

    Args:
        rows: candidates, such as the training part.
        labels: `[N]` labels of the whole data set.
        sizes: one number per class.
        seed: decides the draw.
        class_names: for messages.

    Returns:
        Ascending row numbers.

    Raises:
        InputError: a class has fewer images than asked for.
    """
    rng = np.random.default_rng(seed)
    kept = []
    for label, size in enumerate(sizes):
        members = rows[labels[rows] == label]
        if len(members) < size:
            name = class_names[label] if class_names is not None else str(label)
            raise InputError(
                f"class {name} has {len(members)} images, the profile asks for {size}; lower the "
                "total or the class's share"
            )
        kept.append(rng.permutation(members)[:size])
    return np.sort(np.concatenate(kept))
