"""Posteriors of a set of images, and their file in a run folder."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfal_experiments.atomic import replacing
from cfal_experiments.errors import InputError


@dataclass(frozen=True)
class Predictions:
    """What a system says about images whose classes are known.

    Attributes:
        paths: `[N]` str.
        labels: `[N]` int64 true classes.
        probabilities: `[N, C]` float32.
        class_names: C names.
    """

    paths: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]


def save(file: Path, parts: Mapping[str, Predictions]) -> None:
    """Write predictions by part: `<part>_paths`, `_labels`, `_probabilities`; `class_names`."""
    arrays: dict[str, np.ndarray] = {}
    for part, predictions in parts.items():
        arrays["class_names"] = np.array(predictions.class_names)
        arrays[f"{part}_paths"] = predictions.paths.astype(str)
        arrays[f"{part}_labels"] = predictions.labels
        arrays[f"{part}_probabilities"] = predictions.probabilities
    with replacing(file) as stream:
        np.savez_compressed(stream, **arrays)


def load(file: Path, part: str) -> Predictions:
    """Read one part of a file of `save`; nothing is unpickled.

    Raises:
        InputError: the file is missing or damaged, or lacks the part.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            columns = [arrays[f"{part}_{name}"] for name in ("paths", "labels", "probabilities")]
            return Predictions(*columns, tuple(arrays["class_names"].tolist()))
    except FileNotFoundError as error:
        raise InputError(
            f"{file}: no predictions; finish the run with 'cfal train --resume {file.parent}'"
        ) from error
    except KeyError as error:
        raise InputError(f"{file}: holds no predictions of the {part} part") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file}: damaged predictions ({error}); write them again with 'cfal evaluate'"
        ) from error
