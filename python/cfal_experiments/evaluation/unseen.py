"""Predictions for images without labels, decoded as the training images were."""

from __future__ import annotations

import csv
import glob
import io
from pathlib import Path

import numpy as np
import torch

from cfal_experiments import atomic
from cfal_experiments.data.decode import Unreadable, open_rgb, square
from cfal_experiments.data.layouts.folders import SUFFIXES
from cfal_experiments.errors import InputError
from cfal_experiments.training import export
from cfal_experiments.training.folder import RunFolder

BATCH = 256


def find(pattern: str) -> list[Path]:
    """The image files that a path or a pattern names; of a folder, all inside it.

    Raises:
        InputError: there is none.
    """
    path = Path(pattern)
    if path.is_file():
        return [path]
    inside = path.rglob("*") if path.is_dir() else map(Path, glob.glob(pattern, recursive=True))
    found = sorted(each for each in inside if each.is_file() and each.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{pattern}: no images ({', '.join(SUFFIXES)}); give a file or folder")
    return found


def predict(
    run: Path, pattern: str, output: Path, *, allow_import: bool = False
) -> tuple[int, list[tuple[Path, str]]]:
    """Classify images and write a CSV: path, class, and one posterior per class.

    Args:
        run: folder of a run, or its model file.
        pattern: of `find`.
        output: CSV, written whole or not at all.
        allow_import: build a model that the file names by import path.

    Returns:
        How many images were classified, and `(path, reason)` of those that could not be read.

    Raises:
        InputError: no model, no images, or none that can be read.
    """
    file = run if run.is_file() else RunFolder(run).model
    classifier, description = export.load(file, allow_import=allow_import)
    files = find(pattern)
    output.parent.mkdir(parents=True, exist_ok=True)  # no hour of predictions for a wrong path
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class", *description.class_names])
    failed: list[tuple[Path, str]] = []
    for begin in range(0, len(files), BATCH):
        paths, pixels = [], []
        for path in files[begin : begin + BATCH]:
            try:
                pixels.append(square(open_rgb(path), description.size))
                paths.append(path)
            except Unreadable as error:
                failed.append((path, str(error)))
        if not pixels:
            continue
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        for path, posterior in zip(paths, classifier.predict_proba(images).tolist(), strict=True):
            best = int(np.argmax(posterior))
            writer.writerow([path, description.class_names[best], *(f"{p:.6g}" for p in posterior)])
    if len(failed) == len(files):
        raise InputError(
            f"{pattern}: none of {len(files):,} images could be read ({failed[0][0].name}: "
            f"{failed[0][1]}); give readable images"
        )
    atomic.write_text(output, text.getvalue())
    return len(files) - len(failed), failed
