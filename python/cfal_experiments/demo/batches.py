"""Batches: order, flips and normalisation of images in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cfal_experiments.demo.samples import Samples


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation, `[channels, 1, 1]` each."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, samples: Samples, rows: np.ndarray) -> Normalisation:
        """Statistics of `rows`, which are to be training rows.

        Exact sums from histograms of the byte values: no float copy of the images.
        """
        values = torch.arange(256, dtype=torch.float64)
        images = samples.images[rows]
        moments = []
        for channel in range(images.shape[1]):
            histogram = torch.bincount(images[:, channel].flatten().int(), minlength=256)
            mean = (histogram * values).sum() / histogram.sum()
            variance = (histogram * (values - mean) ** 2).sum() / histogram.sum()
            moments.append((float(mean), max(float(variance.sqrt()), 1e-6)))
        mean, std = torch.tensor(moments).T[:, :, None, None]
        return cls(mean, std)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise uint8 images `[B, channels, height, width]`."""
        scaled = (images.float() - self.mean) / self.std
        return scaled.contiguous(memory_format=torch.channels_last)


def flip_at_random(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip each image horizontally, vertically, both or not, with equal chance."""
    horizontal, vertical = torch.rand(2, len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(horizontal, images.flip(3), images)
    return torch.where(vertical, images.flip(2), images)


def batches(
    samples: Samples,
    rows: np.ndarray,
    normalise: Normalisation,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    flips: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield normalised images and labels; with a generator in random order, else in row order."""
    order = torch.from_numpy(rows)
    if generator is not None:
        order = order[torch.randperm(len(order), generator=generator)]
    for chunk in order.split(batch_size):
        images = normalise(samples.images[chunk])
        if flips:
            images = flip_at_random(images, generator)
        yield images, samples.labels[chunk]
