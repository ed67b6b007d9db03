"""A CSV manifest: path, label, and optionally patient and split."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from cfal_experiments.data.collection import PART_NAMES, Collection
from cfal_experiments.errors import InputError

REQUIRED = ("path", "label")
OPTIONAL = ("patient", "split")


def read(file: Path) -> Collection:
    """The images that a manifest lists; paths are relative to the manifest's own folder.

    A class is named by its label. Labels that are whole numbers are ordered as numbers, others as
    text. Columns beyond the four known ones are ignored.

    Raises:
        InputError: a column is missing, a field is empty, an image is listed twice, a part is
            unknown, or no row is left.
    """
    if not file.is_file():
        raise InputError(f"{file}: not a file; give the CSV manifest itself")
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            _require_columns(file, columns)
            wanted = [*REQUIRED, *(name for name in OPTIONAL if name in columns)]
            rows = [_row(file, reader.line_num, row, wanted) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file}: no CSV file ({error}); save it as CSV in UTF-8") from error
    if not rows:
        raise InputError(f"{file}: no image is listed; add a row per image")
    _require_unique(file, [row["path"] for row in rows])
    labels = [row["label"] for row in rows]
    class_names = sorted(set(labels), key=_order)
    number = {name: index for index, name in enumerate(class_names)}
    return Collection(
        root=file,
        layout="manifest",
        paths=np.array([row["path"] for row in rows]),
        labels=np.array([number[label] for label in labels], dtype=np.int64),
        class_names=tuple(class_names),
        groups=np.array([row["patient"] for row in rows]) if "patient" in columns else None,
        split=np.array([row["split"] for row in rows]) if "split" in columns else None,
    )


def _require_columns(file: Path, columns: list[str]) -> None:
    for name in REQUIRED:
        if name not in columns:
            raise InputError(
                f"{file}: no column {name!r} (found: {', '.join(columns) or 'none'}); the first "
                "line must name path, label and optionally patient, split"
            )


def _row(file: Path, line: int, row: dict[str, str], wanted: list[str]) -> dict[str, str]:
    values = {name: (row[name] or "").strip() for name in wanted}
    for name, value in values.items():
        if not value:
            raise InputError(f"{file}: line {line} has no {name}; fill it in or drop the row")
    if "split" in values:
        part = values["split"].lower()
        if part not in PART_NAMES:
            raise InputError(
                f"{file}: line {line} has split {values['split']!r}; use train, validation or test"
            )
        values["split"] = PART_NAMES[part]
    return values


def _require_unique(file: Path, paths: list[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise InputError(f"{file}: {path} is listed twice; keep one of the rows")
        seen.add(path)


def _order(label: str) -> tuple[int, int, str]:
    """Whole numbers first and by value, then text."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)
