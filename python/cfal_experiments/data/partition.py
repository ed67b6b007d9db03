"""The three parts of a data set, as row numbers, and their file in a run folder."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfal_experiments.errors import InputError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Row numbers of three disjoint parts, ascending int64; rows may be in none of them."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def parts(self) -> dict[str, np.ndarray]:
        """The three parts by name."""
        return {name: getattr(self, name) for name in PARTS}

    def save(self, file: str | Path, paths: np.ndarray) -> None:
        """Write the parts as CSV (path, part), in row order.

        Paths survive another cache of the same images, row numbers would not. The file appears
        whole or not at all.
        """
        file = Path(file)
        part_of = {int(row): name for name, rows in self.parts().items() for row in rows}
        partial = file.with_name(f".{file.name}.partial")
        with partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("path", "part"))
            writer.writerows((paths[row], part_of[row]) for row in sorted(part_of))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)

    @classmethod
    def load(cls, file: str | Path, paths: np.ndarray) -> Split:
        """Read a file of `save` for the images that are called `paths` here.

        Raises:
            InputError: the file is missing or no split file, or names an image that is not here.
        """
        file = Path(file)
        row_of = {str(path): row for row, path in enumerate(paths)}
        rows: dict[str, list[int]] = {name: [] for name in PARTS}
        try:
            with file.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                if reader.fieldnames != ["path", "part"]:
                    raise InputError(f"{file}: not a split file (path,part); give the run's own")
                for entry in reader:
                    if entry["path"] not in row_of:
                        raise InputError(
                            f"{file}: {entry['path']} is not in this data set; give the data that "
                            "the split was made from"
                        )
                    if entry["part"] not in rows:
                        raise InputError(
                            f"{file}: part {entry['part']!r} is none of {', '.join(PARTS)}; give "
                            "the run's own split file"
                        )
                    rows[entry["part"]].append(row_of[entry["path"]])
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read ({error}); give the run's own") from error
        return cls(**{name: np.sort(np.array(part, np.int64)) for name, part in rows.items()})
