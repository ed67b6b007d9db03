"""The IDC breast patches in their public folder layout: `<patient>/<0|1>/<patch>.png`."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cfal_experiments.demo.samples import Samples
from cfal_experiments.errors import InputError

CLASS_NAMES = ("negative", "positive")
FULL_SIZE = (50, 50)  # patches at the edge of a slide are smaller
LAYOUT = "<patient>/<0|1>/<patch>.png"


@dataclass(frozen=True)
class Patch:
    """One image file with what its place in the folder says about it."""

    path: Path
    patient: str
    label: int


@dataclass(frozen=True)
class Report:
    """What reading the folder met.

    Attributes:
        found: patches in the folder.
        used: patches that were read.
        odd_sizes: how many of the used are not 50 x 50.
        unreadable: `(path, reason)` of those skipped.
    """

    found: int
    used: int
    odd_sizes: int
    unreadable: tuple[tuple[Path, str], ...]


def find_patches(folder: Path) -> list[Patch]:
    """List the patches of an IDC folder, sorted.

    Raises:
        InputError: the folder is missing, empty, of another layout, or holds one class only.
    """
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; give the folder that holds {LAYOUT}")
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; give the folder that holds {LAYOUT}")
    try:
        if not any(folder.iterdir()):
            raise InputError(f"{folder}: empty folder; unpack the IDC patches there ({LAYOUT})")
        patches = _matching(folder)
        if not patches:
            inner = next((child for child in _folders(folder) if _matching(child)), None)
            hint = f"did you mean {inner}?" if inner else "give the folder that holds the patients"
            raise InputError(f"{folder}: not an IDC folder, nothing matches {LAYOUT}; {hint}")
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; make it readable") from error
    _require_both_classes(folder, (patch.label for patch in patches))
    return patches


def sample_patients(patches: list[Patch], limit: int, seed: int) -> list[Patch]:
    """Patches of whole patients, drawn in random order until `limit` patches are reached."""
    if not limit or len(patches) <= limit:
        return patches
    sizes = Counter(patch.patient for patch in patches)
    patients = np.array(sorted(sizes))
    kept, total = set(), 0
    for patient in np.random.default_rng(seed).permutation(patients):
        if total and total + sizes[patient] > limit:
            break
        kept.add(str(patient))
        total += sizes[patient]
    return [patch for patch in patches if patch.patient in kept]


def load(
    folder: Path,
    patches: list[Patch],
    size: int = 32,
    on_patch: Callable[[], object] = lambda: None,
) -> tuple[Samples, Report]:
    """Decode patches once into memory, resized to `size` x `size` (bilinear, antialiased).

    Patches cropped at a slide edge are stretched to the same square. Files that cannot be decoded
    are skipped and named in the report.

    Raises:
        InputError: no file, or no file of one class, could be read.
    """
    images = np.empty((len(patches), size, size, 3), dtype=np.uint8)

    def decode(row: int) -> tuple[bool, str]:
        try:
            with Image.open(patches[row].path) as image:
                full = image.size == FULL_SIZE
                pixels = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return False, str(error).replace(str(patches[row].path), "the file") or repr(error)
        images[row] = np.asarray(pixels)
        return full, ""

    outcomes = []
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for outcome in pool.map(decode, range(len(patches))):
            outcomes.append(outcome)
            on_patch()
    good = np.array([not reason for _, reason in outcomes], dtype=bool)
    unreadable = tuple(
        (patch.path, reason) for patch, (_, reason) in zip(patches, outcomes, strict=True) if reason
    )
    if not good.any():
        raise InputError(
            f"{folder}: none of {len(patches)} patches could be read ({unreadable[0][0].name}: "
            f"{unreadable[0][1]}); unpack the archive again"
        )
    read = [patch for patch, kept in zip(patches, good, strict=True) if kept]
    _require_both_classes(folder, (patch.label for patch in read))
    samples = Samples(
        images=torch.from_numpy(images[good]).permute(0, 3, 1, 2),
        labels=torch.tensor([patch.label for patch in read]),
        class_names=CLASS_NAMES,
        groups=np.array([patch.patient for patch in read]),
    )
    odd = sum(not full for full, reason in outcomes if not reason)
    return samples, Report(len(patches), len(read), odd, unreadable)


def _matching(folder: Path) -> list[Patch]:
    return [
        Patch(path, patient.name, label)
        for patient in _folders(folder)
        for label in (0, 1)
        for path in sorted((patient / str(label)).glob("*.[pP][nN][gG]"))
    ]


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir())


def _require_both_classes(folder: Path, labels: object) -> None:
    present = set(labels)
    for label, name in enumerate(CLASS_NAMES):
        if label not in present:
            raise InputError(
                f"{folder}: no readable {name} patch; a classifier needs patches of both classes, "
                f"in <patient>/0 and <patient>/1"
            )
