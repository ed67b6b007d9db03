"""Scikit-learn's bundled handwritten digits, made long-tailed."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from cfal_experiments.demo.samples import Samples, Split
from cfal_experiments.demo.splits import stratified


def load() -> Samples:
    """The 1,797 digits of 8 x 8 pixels; nothing is downloaded."""
    bunch = load_digits()
    return Samples(
        images=torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1),
        labels=torch.from_numpy(bunch.target.astype(np.int64)),
        class_names=tuple(str(digit) for digit in range(10)),
    )


def long_tail_profile(largest: int, num_classes: int, ratio: float) -> list[int]:
    """Class sizes that fall geometrically from `largest` to `largest / ratio`, never below 1.

    Example:
        >>> long_tail_profile(100, 3, 100.0)
        [100, 10, 1]
    """
    steps = np.arange(num_classes) / max(num_classes - 1, 1)
    return [max(1, int(round(size))) for size in largest * float(ratio) ** -steps]


def long_tailed_split(samples: Samples, seed: int, ratio: float = 100.0) -> Split:
    """Stratified split whose training part is thinned to a long tail.

    Which digit becomes rare is drawn from the seed, so that no digit's own difficulty decides the
    result. Validation and test stay balanced.
    """
    split = stratified(samples, seed)
    rng = np.random.default_rng(seed)
    labels = samples.labels.numpy()
    largest = min(samples.counts(split.train))
    sizes = long_tail_profile(largest, samples.num_classes, ratio)
    kept = [
        rng.permutation(split.train[labels[split.train] == digit])[:size]
        for digit, size in zip(rng.permutation(samples.num_classes), sizes, strict=True)
    ]
    return Split(np.sort(np.concatenate(kept)), split.validation, split.test)
