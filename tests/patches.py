"""Folders of generated images, in the layouts that the harness reads; and where real ones lie."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(os.environ.get("CFAL_SHARED", Path(__file__).parents[2] / "shared"))

#: Marks a test that reads the shared data sets.
needs_shared_data = pytest.mark.skipif(
    not (SHARED / "data" / "idc").is_dir(),
    reason=f"no shared data in {SHARED}; set CFAL_SHARED to its folder",
)


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (50, 50)) -> Path:
    """An image of noise, `size` as (width, height), in the format that the suffix names."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_idc(folder: Path, patients: int = 4, per_class: int = 2) -> Path:
    """Patients `10`, `11`, ... with as many patches of either class."""
    seed = 0
    for patient in map(str, range(10, 10 + patients)):
        for label in (0, 1):
            for x in range(per_class):
                name = f"{patient}_idx5_x{x}_y1_class{label}.png"
                write_image(folder / patient / str(label) / name, seed)
                seed += 1
    return folder


def write_classes(
    folder: Path, counts: dict[str, int], suffix: str = ".tif", seed: int = 0
) -> Path:
    """One folder per class with so many images."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            write_image(folder / name / f"{name}-{number}{suffix}", seed, (16, 16))
            seed += 1
    return folder


def write_npz(file: Path, counts: dict[str, int], size: int = 12, classes: int = 9) -> Path:
    """An .npz laid out as PathMNIST: `counts` gives the images per part (train, val, test)."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in counts.items():
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    np.savez_compressed(file, **arrays)
    return file
