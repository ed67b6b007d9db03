"""Decoded, labelled images of one size: what training, statistics and evaluation read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfal_experiments.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, in memory or mapped from a cache file.

    Attributes:
        images: `[N, height, width, channels]` uint8; only ever read.
        labels: `[N]` int64 below `len(class_names)`.
        class_names: one name per class.
        paths: `[N]` str, unique: what a prediction or a split file calls the image.
        groups: `[N]` str, what a split must not tear apart (the patient), or None.
        split: `[N]` str, the part that the source itself assigns (train, validation, test), or
            None.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    paths: np.ndarray
    groups: np.ndarray | None = None
    split: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, with or without images."""
        return len(self.class_names)

    def counts(self, rows: np.ndarray | None = None) -> list[int]:
        """Number of images per class among `rows`, or among all."""
        labels = self.labels if rows is None else self.labels[rows]
        return np.bincount(labels, minlength=self.num_classes).tolist()

    def with_classes(self, class_names: Sequence[str]) -> ImageSet:
        """The same images with labels that index `class_names`, matched by name.

        A model's classes come in the order of its training data. A folder to evaluate on may hold
        some of them only.

        Raises:
            InputError: an image has a class that `class_names` lacks.

        Example:
            >>> tissue = ImageSet(pixels, np.array([0, 1]), ("LYM", "TUM"), paths)
            >>> tissue.with_classes(["ADI", "LYM", "TUM"]).labels
            array([1, 2])
        """
        known = {name: number for number, name in enumerate(class_names)}
        unknown = [
            name
            for name, count in zip(self.class_names, self.counts(), strict=True)
            if count and name not in known
        ]
        if unknown:
            raise InputError(
                f"class {', '.join(map(repr, unknown))} is none of the model's "
                f"({', '.join(class_names)}); leave those images out or rename the class"
            )
        renumbered = np.array([known.get(name, 0) for name in self.class_names], dtype=np.int64)
        return dataclasses.replace(
            self, labels=renumbered[self.labels], class_names=tuple(class_names)
        )
