"""Per-channel mean and standard deviation of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHUNK = 1024  # images whose bytes are counted at a time


@dataclass(frozen=True)
class Normalisation:
    """Maps bytes x to (x - mean) / std, per channel.

    Attributes:
        mean: one value per channel, in units of a byte (0 to 255).
        std: the same; never 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: np.ndarray, rows: np.ndarray) -> Normalisation:
        """Statistics of the pixels of `images[rows]`, `[N, height, width, channels]` uint8.

        Sums come from histograms of the 256 byte values, in whole numbers: exact, in any order, and
        without a float copy of the images. `rows` are to be training rows only.
        """
        values = np.arange(256)
        histograms = np.zeros((images.shape[-1], 256), np.int64)
        rows = np.sort(rows)
        for begin in range(0, len(rows), CHUNK):
            chunk = images[rows[begin : begin + CHUNK]]
            for channel, histogram in enumerate(histograms):
                histogram += np.bincount(chunk[..., channel].ravel(), minlength=256)
        count = histograms.sum(1)
        mean = (histograms @ values) / count
        variance = (histograms * (values - mean[:, None]) ** 2).sum(1) / count
        # A constant channel is centred and otherwise left alone.
        std = np.where(variance > 0, np.sqrt(variance), 1.0)
        return cls(tuple(mean.tolist()), tuple(std.tolist()))


#: Of the ImageNet photographs that public weights were trained on, which were scaled to [0, 1].
IMAGENET = Normalisation(
    tuple(255 * mean for mean in (0.485, 0.456, 0.406)),
    tuple(255 * std for std in (0.229, 0.224, 0.225)),
)
