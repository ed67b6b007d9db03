"""A data set that is found but not decoded: paths, labels, classes, patients."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: The parts of a data set, under the names that sources give them.
PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Collection:
    """Labelled images that nothing has read yet.

    Attributes:
        root: the folder, the manifest or the .npz that was opened.
        layout: "idc", "folders", "npz" or "manifest".
        paths: `[N]` str. Files relative to `root` (a manifest: to its folder), or `part/number`
            in an .npz.
        labels: `[N]` int64.
        class_names: one name per class.
        groups: `[N]` str, the patient of each image, or None where the source does not say.
        split: `[N]` str among train, validation and test, or None where the source has no parts.
        usual_size: (width, height) of an image of this kind, or None: others are odd-sized.
        content: what identifies the pixels of an .npz, None for files.
    """

    root: Path
    layout: str
    paths: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None = None
    split: np.ndarray | None = None
    usual_size: tuple[int, int] | None = None
    content: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def folder(self) -> Path:
        """What `paths` are relative to."""
        return self.root if self.root.is_dir() else self.root.parent

    def file(self, row: int) -> Path:
        """The file of one image; an .npz has none per image."""
        return self.folder / str(self.paths[row])

    def take(self, rows: np.ndarray) -> Collection:
        """Some of the images, in the order of `rows`; not of an .npz, which is read as a whole."""
        return dataclasses.replace(
            self,
            paths=self.paths[rows],
            labels=self.labels[rows],
            groups=None if self.groups is None else self.groups[rows],
            split=None if self.split is None else self.split[rows],
        )

    def counts(self) -> list[int]:
        """Number of images per class."""
        return np.bincount(self.labels, minlength=len(self.class_names)).tolist()

    def fingerprint(self) -> str:
        """SHA-256 over names, sizes in bytes, labels, patients and parts.

        It changes when an image is added, removed, relabelled, or replaced by one of another size
        in bytes. Reading every file to be sure would cost as much as decoding it. The place of the
        folder and its times do not enter, so that a copy has the same fingerprint.
        """
        digest = hashlib.sha256()
        digest.update(repr((self.layout, self.class_names, self.content)).encode())
        for row, path in enumerate(self.paths):
            size = -1 if self.content else _size(self.folder / str(path))
            group = None if self.groups is None else str(self.groups[row])
            part = None if self.split is None else str(self.split[row])
            digest.update(repr((str(path), size, int(self.labels[row]), group, part)).encode())
        return digest.hexdigest()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1
