"""Labelled images in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Samples:
    """Labelled images that fit into memory.

    Attributes:
        images: `[N, channels, height, width]` uint8.
        labels: `[N]` int64, values below `len(class_names)`.
        class_names: one name per class.
        groups: `[N]` what must not be torn apart by a split (the patient), or None.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, with or without samples."""
        return len(self.class_names)

    def counts(self, rows: np.ndarray) -> list[int]:
        """Number of samples per class among `rows`."""
        return torch.bincount(self.labels[rows], minlength=self.num_classes).tolist()


@dataclass(frozen=True)
class Split:
    """Row numbers of three disjoint parts of a `Samples`."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def parts(self) -> dict[str, np.ndarray]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
