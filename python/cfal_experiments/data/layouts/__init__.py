"""How data sets lie on disk, one module per layout."""

from __future__ import annotations

from pathlib import Path

from cfal_experiments.data.collection import Collection
from cfal_experiments.data.layouts import folders, manifest, npz
from cfal_experiments.errors import InputError

LAYOUTS = ("auto", "idc", "folders", "npz", "manifest")


def open_collection(path: str | Path, layout: str = "auto") -> Collection:
    """Find the images of a data set and what their places say about them.

    Layouts:
        idc: `<patient>/<0|1>/<patch>.png`; classes negative and positive, patients known.
        folders: one folder per class, or `train/`, `validation/`, `test/` (or the folders of the
            two NCT-CRC archives) with one folder per class in each.
        npz: arrays `train_images`, `train_labels` and so on, as MedMNIST stores them.
        manifest: a CSV with the columns path and label, and optionally patient and split.

    Raises:
        InputError: the path is missing, empty, unreadable, or of another layout.

    Example:
        >>> found = open_collection("IDC_regular_ps50_idx5")
        >>> found.layout, found.class_names
        ('idc', ('negative', 'positive'))
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r} is unknown; choose from {', '.join(LAYOUTS)}")
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; give the data set's own path")
        if layout == "auto":
            layout = _guess(path)
        if layout == "manifest":
            return manifest.read(path)
        if layout == "npz":
            return npz.read(path)
        return folders.read_idc(path) if layout == "idc" else folders.read_classes(path)
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: {error.strerror or error}; make it readable"
        ) from error


def _guess(path: Path) -> str:
    if path.is_file():
        by_suffix = {".npz": "npz", ".csv": "manifest"}
        if path.suffix.lower() in by_suffix:
            return by_suffix[path.suffix.lower()]
        raise InputError(f"{path}: not a data set; give a folder, an .npz or a .csv manifest")
    return "idc" if folders.looks_like_idc(path) else "folders"
