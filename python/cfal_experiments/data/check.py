"""What is wrong with a data set, found by decoding every image once."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cfal_experiments.data import parallel
from cfal_experiments.data.collection import Collection
from cfal_experiments.data.decode import Unreadable, open_rgb

LEAST = 3  # images of a class: one for each of train, validation and test


@dataclass(frozen=True)
class Duplicates:
    """Images with the same pixels.

    Attributes:
        paths: their names.
        parts: the parts of the split that they are in.
        classes: the classes that they are labelled with.
    """

    paths: tuple[str, ...]
    parts: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """What a check found; the lists name every single case.

    Attributes:
        root: what was checked.
        layout: how it is laid out.
        counts: images per class.
        parts: images per part and class, empty without a split.
        patients: number of patients, or None where they are unknown.
        usual_size: (width, height) of most images, or None where sizes vary.
        unreadable: `(path, reason)`.
        odd_sizes: `(path, width, height)` of images that have not the usual size.
        duplicates: groups of images with the same pixels.
        overlap: `(patient, parts)` of patients in more than one part.
    """

    root: str
    layout: str
    counts: dict[str, int]
    parts: dict[str, dict[str, int]]
    patients: int | None
    usual_size: tuple[int, int] | None
    unreadable: tuple[tuple[str, str], ...]
    odd_sizes: tuple[tuple[str, int, int], ...]
    duplicates: tuple[Duplicates, ...]
    overlap: tuple[tuple[str, tuple[str, ...]], ...]

    def problems(self) -> list[str]:
        """What makes results wrong: damage, leaks, contradictions, classes too small to split."""
        found = []
        if self.unreadable:
            found.append(f"{len(self.unreadable):,} unreadable")
        for name, count in self.counts.items():
            if count < LEAST:
                found.append(f"class {name} has {count}, at least {LEAST} are needed")
        if len(self.counts) < 2:
            found.append("one class only")
        leaks = sum(len(group.parts) > 1 for group in self.duplicates)
        if leaks:
            found.append(f"{leaks:,} duplicated across parts of the split")
        contradictions = sum(len(group.classes) > 1 for group in self.duplicates)
        if contradictions:
            found.append(f"{contradictions:,} duplicated with different labels")
        if self.overlap:
            found.append(f"{len(self.overlap):,} patients in more than one part")
        return found

    def notices(self) -> list[str]:
        """What is worth knowing and common in good data: odd sizes, harmless duplicates."""
        found = []
        if self.odd_sizes:
            width, height = self.usual_size or (0, 0)
            found.append(f"{len(self.odd_sizes):,} are not {width} x {height}")
        harmless = [
            group for group in self.duplicates if len(group.parts) < 2 and len(group.classes) < 2
        ]
        if harmless:
            found.append(f"{len(harmless):,} duplicated within their class")
        return found

    def as_dict(self) -> dict:
        """For a JSON file: every field, with the problems and notices in words."""
        return {**asdict(self), "problems": self.problems(), "notices": self.notices()}


def check(
    collection: Collection,
    parts: np.ndarray | None = None,
    *,
    workers: int | None = None,
    on_images: Callable[[int], object] = lambda count: None,
) -> Findings:
    """Decode every image and compare what is there.

    Two images are duplicates if their decoded pixels are equal, also where the files differ.

    Args:
        collection: what to check.
        parts: `[N]` part of each image ("" for none), by default those of the collection itself.
        workers: as many chunks are decoded at a time, all cores by default. Large collections of
            files take processes: a script that calls this needs the usual `__main__` guard.
        on_images: called with the number of images that were done since the last call.

    Example:
        >>> check(open_collection("IDC_regular_ps50_idx5")).problems()
        []
    """
    parts = collection.split if parts is None else parts
    sizes: list[tuple[int, int] | None] = []
    reasons: list[tuple[str, str]] = []
    rows_of: dict[bytes, list[int]] = defaultdict(list)
    for chunk in parallel.over_chunks(_inspect, collection, workers):
        for size, digest, reason in chunk:
            row = len(sizes)
            sizes.append(size)
            if size is None:
                reasons.append((str(collection.paths[row]), reason))
            else:
                rows_of[digest].append(row)
        on_images(len(chunk))
    usual = _usual_size(collection, sizes)
    return Findings(
        root=str(collection.root),
        layout=collection.layout,
        counts=_counts(collection, np.arange(len(collection))),
        parts={}
        if parts is None
        else {
            str(part): _counts(collection, np.flatnonzero(parts == part))
            for part in np.unique(parts[parts != ""])
        },
        patients=None if collection.groups is None else len(np.unique(collection.groups)),
        usual_size=usual,
        unreadable=tuple(reasons),
        odd_sizes=tuple(
            (str(path), *size)
            for path, size in zip(collection.paths, sizes, strict=True)
            if usual is not None and size is not None and size != usual
        ),
        duplicates=tuple(
            _duplicates(collection, parts, rows) for rows in rows_of.values() if len(rows) > 1
        ),
        overlap=_overlap(collection.groups, parts),
    )


def _inspect(chunk: parallel.Chunk) -> list[tuple[tuple[int, int] | None, bytes, str]]:
    """Size and hash of every image, or the reason why there is none."""
    found = []
    for image in chunk[1]:
        try:
            pixels = np.asarray(open_rgb(image)) if isinstance(image, Path) else image
        except Unreadable as error:
            found.append((None, b"", str(error)))
            continue
        height, width = pixels.shape[:2]
        digest = hashlib.blake2b(f"{width} {height} ".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels))
        found.append(((width, height), digest.digest(), ""))
    return found


def _usual_size(
    collection: Collection, sizes: list[tuple[int, int] | None]
) -> tuple[int, int] | None:
    """The layout's own size, or the size of more than half of the images."""
    if collection.usual_size is not None:
        return collection.usual_size
    known = Counter(size for size in sizes if size is not None)
    size, count = known.most_common(1)[0] if known else (None, 0)
    return size if 2 * count > known.total() else None


def _counts(collection: Collection, rows: np.ndarray) -> dict[str, int]:
    counts = np.bincount(collection.labels[rows], minlength=len(collection.class_names))
    return dict(zip(collection.class_names, counts.tolist(), strict=True))


def _duplicates(collection: Collection, parts: np.ndarray | None, rows: list[int]) -> Duplicates:
    inside = set() if parts is None else {str(parts[row]) for row in rows if parts[row]}
    return Duplicates(
        paths=tuple(str(collection.paths[row]) for row in rows),
        parts=tuple(sorted(inside)),
        classes=tuple(sorted({collection.class_names[collection.labels[row]] for row in rows})),
    )


def _overlap(
    groups: np.ndarray | None, parts: np.ndarray | None
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if groups is None or parts is None:
        return ()
    parts_of: dict[str, set[str]] = defaultdict(set)
    for group, part in zip(groups, parts, strict=True):
        if part:
            parts_of[str(group)].add(str(part))
    return tuple(
        (group, tuple(sorted(inside))) for group, inside in parts_of.items() if len(inside) > 1
    )
