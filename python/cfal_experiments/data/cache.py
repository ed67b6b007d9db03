"""The cache: decoded images of one size in a file that is mapped into memory.

A cache is a folder with three files:

    header.json   format, settings, class names, fingerprint of the source, unreadable files
    index.npz     labels [N], paths [N], groups [N] and split [N] where known
    images.u8     N x size x size x 3 bytes, row-major, without a header of its own

It is written under another name and renamed when complete, so that what `open` finds is whole.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cfal_experiments.data.images import ImageSet
from cfal_experiments.errors import InputError

FORMAT = "cfal-cache-1"
HEADER, INDEX, IMAGES = "header.json", "index.npz", "images.u8"


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a cache.

    Attributes:
        size: height and width in pixels.
        resampling: filter of the resize, a name of `decode.RESAMPLING`.
        source: fingerprint of the collection (`Collection.fingerprint`).
    """

    size: int
    resampling: str
    source: str


@dataclass(frozen=True)
class Cache(ImageSet):
    """A prepared data set; `images` is a read-only `np.memmap`.

    Attributes:
        settings: size, resampling and fingerprint of the source.
        unreadable: `(path, reason)` of the images that were left out.
        folder: where the cache lies.
    """

    settings: Settings | None = None
    unreadable: tuple[tuple[str, str], ...] = ()
    folder: Path | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Cache:
        """Map a cache that `prepare` wrote; nothing is read but the index.

        Raises:
            InputError: there is no cache, or its files do not fit together.

        Example:
            >>> cache = Cache.open("idc-32")
            >>> cache.images.shape, cache.class_names
            ((277524, 32, 32, 3), ('negative', 'positive'))
        """
        folder = Path(folder)
        header = read_header(folder)
        settings = Settings(**header["settings"])
        shape = (header["count"], settings.size, settings.size, 3)
        try:
            with np.load(folder / INDEX, allow_pickle=False) as index:
                columns = {name: index[name] for name in index.files}
            size = (folder / IMAGES).stat().st_size
            if size != np.prod(shape) or len(columns["labels"]) != shape[0]:
                raise ValueError(f"{IMAGES} has {size} bytes, {shape[0]} images are announced")
            images = np.memmap(folder / IMAGES, np.uint8, "r", shape=shape)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{folder}: damaged cache ({error}); delete the folder and prepare it again"
            ) from error
        return cls(
            images=images,
            labels=columns["labels"],
            class_names=tuple(header["class_names"]),
            paths=columns["paths"],
            groups=columns.get("groups"),
            split=columns.get("split"),
            settings=settings,
            unreadable=tuple((path, reason) for path, reason in header["unreadable"]),
            folder=folder,
        )


def is_cache(folder: Path) -> bool:
    """Whether a folder claims to be a cache, of this version or another."""
    return (folder / HEADER).is_file() and (folder / IMAGES).exists()


def read_header(folder: Path) -> dict:
    """The header of a cache.

    Raises:
        InputError: there is none, or one of another format.
    """
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: no cache; make one with 'cfal data prepare SOURCE --to {folder}'"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: damaged cache ({error}); delete the folder and prepare it again"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{folder}: not a cache of this version; delete it and prepare it again")
    return header


def make_header(cache: Cache) -> dict:
    """What `header.json` holds."""
    return {
        "format": FORMAT,
        "count": len(cache),
        "settings": asdict(cache.settings),
        "class_names": list(cache.class_names),
        "unreadable": [list(entry) for entry in cache.unreadable],
    }
