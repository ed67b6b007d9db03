"""Data sets whose folders say the class, the patient or the part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cfal_experiments.data.collection import PART_NAMES, Collection
from cfal_experiments.errors import InputError

IDC_LAYOUT = "<patient>/<0|1>/<patch>.png"
IDC_CLASSES = ("negative", "positive")
IDC_SIZE = (50, 50)  # (width, height); patches at the edge of a slide are smaller
SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp")

#: The archives of NCT-CRC unpack to folders that are parts: one trains, the other tests.
_PARTS = {
    **PART_NAMES,
    "nct-crc-he-100k": "train",
    "nct-crc-he-100k-nonorm": "train",
    "crc-val-he-7k": "test",
}


def looks_like_idc(folder: Path) -> bool:
    """Whether some sub-folder has a folder 0 or 1 with a PNG file."""
    return any(
        next(_images(folder / patient / label, (".png",)), None) is not None
        for patient in _folders(folder)
        for label in ("0", "1")
    )


def read_idc(folder: Path) -> Collection:
    """The patches of an IDC folder, in sorted order.

    Raises:
        InputError: not a folder, empty, or without a patch where patches should be.
    """
    _require_folder(folder, IDC_LAYOUT)
    paths, labels, groups = [], [], []
    for patient in _folders(folder):
        for label in (0, 1):
            for name in _images(folder / patient / str(label), (".png",)):
                paths.append(f"{patient}/{label}/{name}")
                labels.append(label)
                groups.append(patient)
    if not paths:
        inner = next((name for name in _folders(folder) if looks_like_idc(folder / name)), None)
        hint = f"did you mean {folder / inner}?" if inner else "give the folder of the patients"
        raise InputError(f"{folder}: not an IDC folder, nothing matches {IDC_LAYOUT}; {hint}")
    return Collection(
        root=folder,
        layout="idc",
        paths=np.array(paths),
        labels=np.array(labels, dtype=np.int64),
        class_names=IDC_CLASSES,
        groups=np.array(groups),
        usual_size=IDC_SIZE,
    )


def read_classes(folder: Path) -> Collection:
    """A folder of class folders, or of parts (train, validation, test) that hold class folders.

    A class is named after its folder; classes are numbered in the order of their names.

    Raises:
        InputError: not a folder, empty, or without an image in any class folder.
    """
    _require_folder(folder, "<class>/<image>")
    names = _folders(folder)
    parts = {name: _PARTS[name.lower()] for name in names if name.lower() in _PARTS}
    parts = {name: part for name, part in parts.items() if _folders(folder / name)}
    if parts:
        found = [
            (part, class_name, f"{name}/{class_name}/{file}")
            for name, part in parts.items()
            for class_name in _folders(folder / name)
            for file in _images(folder / name / class_name)
        ]
        classes = sorted({name for part in parts for name in _folders(folder / part)})
    else:
        found = [
            ("", class_name, f"{class_name}/{file}")
            for class_name in names
            for file in _images(folder / class_name)
        ]
        classes = names
    if not found:
        raise InputError(f"{folder}: no image in any class folder; {_hint(folder, names)}")
    number = {name: index for index, name in enumerate(classes)}
    return Collection(
        root=folder,
        layout="folders",
        paths=np.array([path for _, _, path in found]),
        labels=np.array([number[name] for _, name, _ in found], dtype=np.int64),
        class_names=tuple(classes),
        split=np.array([part for part, _, _ in found]) if parts else None,
    )


def _hint(folder: Path, names: list[str]) -> str:
    if next(_images(folder), None) is not None:
        return "images in one folder need a CSV manifest (path,label) that says their classes"
    for name in names:
        inner = folder / name
        if looks_like_idc(inner) or any(
            next(_images(inner / child), None) is not None for child in _folders(inner)
        ):
            return f"did you mean {inner}?"
    return f"expected <class>/<image> with {', '.join(SUFFIXES)}"


def _require_folder(folder: Path, layout: str) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; give the folder that holds {layout}")
    if next(os.scandir(folder), None) is None:
        raise InputError(f"{folder}: empty folder; unpack the images there ({layout})")


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def _images(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[str]:
    """Names of the image files of a folder, sorted; none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from sorted(
        name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")
    )
