"""Scikit-learn's bundled handwritten digits, made long-tailed."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from cfal_experiments.data import splits
from cfal_experiments.data.images import ImageSet
from cfal_experiments.data.longtail import thin
from cfal_experiments.data.partition import Split


def load() -> ImageSet:
    """The 1,797 digits of 8 x 8 pixels; nothing is downloaded."""
    bunch = load_digits()
    return ImageSet(
        images=bunch.images.astype(np.uint8)[..., None],
        labels=bunch.target.astype(np.int64),
        class_names=tuple(str(digit) for digit in range(10)),
        paths=np.arange(len(bunch.target)).astype(str),
    )


def long_tail_profile(largest: int, num_classes: int, ratio: float) -> list[int]:
    """Class sizes that fall geometrically from `largest` to `largest / ratio`, never below 1.

    Example:
        >>> long_tail_profile(100, 3, 100.0)
        [100, 10, 1]
    """
    steps = np.arange(num_classes) / max(num_classes - 1, 1)
    return [max(1, int(round(size))) for size in largest * float(ratio) ** -steps]


def long_tailed_split(images: ImageSet, seed: int, ratio: float = 100.0) -> Split:
    """Split of 65 %, 15 % and 20 % of each class, its training part thinned to a long tail.

    Which digit becomes rare is drawn from the seed, so that no digit's own difficulty decides the
    result. Validation and test stay balanced.
    """
    split = splits.make("random", images.labels, seed=seed, test=0.20, validation=0.1875)
    largest = min(images.counts(split.train))
    sizes = np.array(long_tail_profile(largest, images.num_classes, ratio))
    ranks = np.random.default_rng(seed).permutation(images.num_classes)
    train = thin(split.train, images.labels, sizes[ranks].tolist(), seed)
    return Split(train, split.validation, split.test)
