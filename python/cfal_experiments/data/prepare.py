"""Decode and resize a collection once, into a cache."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from cfal_experiments.data import cache as cache_files
from cfal_experiments.data import parallel
from cfal_experiments.data.cache import Cache, Settings
from cfal_experiments.data.collection import Collection
from cfal_experiments.data.decode import RESAMPLING, Unreadable, open_rgb, square
from cfal_experiments.errors import InputError

MOVED = 256  # rows moved at a time when gaps are closed
RESERVE = 64 * 2**20  # bytes to leave free on the disk


def prepare(
    collection: Collection,
    to: str | Path,
    size: int = 32,
    *,
    resampling: str = "bilinear",
    workers: int | None = None,
    overwrite: bool = False,
    on_images: Callable[[int], object] = lambda count: None,
) -> Cache:
    """Write a cache of `collection` into the folder `to`, or reuse the one that is there.

    Images that are not square are stretched to `size` x `size`. Those that cannot be decoded are
    left out and named in the cache. The folder appears when it is complete: an interrupt, a kill or
    a full disk leaves either the previous cache or none.

    Args:
        collection: what to decode.
        to: folder of the cache, made by this call.
        size: height and width in pixels.
        resampling: a name of `decode.RESAMPLING`.
        workers: how many images are decoded at a time, all cores by default. Large collections of
            files take processes: a script that calls this needs the usual `__main__` guard.
        overwrite: replace a cache with other settings instead of refusing.
        on_images: called with the number of images that were done since the last call.

    Raises:
        InputError: the settings are out of range, `to` holds something else or a cache with other
            settings, no image could be read, or the disk is full.

    Example:
        >>> cache = prepare(open_collection("IDC_regular_ps50_idx5"), to="idc-32", size=32)
    """
    to = Path(to)
    if size < 1:
        raise InputError(f"size {size} is not positive; give pixels, such as 32")
    if resampling not in RESAMPLING:
        raise InputError(f"resampling {resampling!r} is unknown; use {', '.join(RESAMPLING)}")
    settings = Settings(size, resampling, collection.fingerprint())
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        # Two runs that start together: the second waits, then finds the cache of the first.
        with FileLock(to.with_name(f".{to.name}.lock")):
            if to.exists() and not (overwrite and cache_files.is_cache(to)):
                found = _reusable(to, settings)
                on_images(len(collection))
                return found
            with _appearing(to) as unfinished:
                _write(collection, settings, unfinished, workers, on_images)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(to, _bytes(collection, size)) from error
        raise InputError(
            f"{error.filename or to}: {error.strerror or error}; choose another folder with --to"
        ) from error
    return Cache.open(to)


def _reusable(to: Path, settings: Settings) -> Cache:
    if not cache_files.is_cache(to):
        raise InputError(f"{to}: exists and is not a cache; choose another folder with --to")
    found = Cache.open(to)
    before = found.settings
    differences = [
        f"{name} {getattr(before, name)} there, {getattr(settings, name)} wanted"
        for name in ("size", "resampling")
        if getattr(before, name) != getattr(settings, name)
    ]
    if before.source != settings.source:
        differences.append("made from other or changed images")
    if differences:
        raise InputError(
            f"{to}: a cache with other settings ({'; '.join(differences)}); choose another folder "
            "with --to, or replace it with --overwrite"
        )
    return found


@contextmanager
def _appearing(to: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `to` when the block ends without an error."""
    unfinished = to.with_name(f".{to.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)  # what a killed run left; the lock is ours
    unfinished.mkdir()
    try:
        yield unfinished
        for file in unfinished.iterdir():
            _sync(file)
        _sync(unfinished)
        if to.exists():  # only with `overwrite`
            shutil.rmtree(to)
        unfinished.rename(to)
        _sync(to.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(
    collection: Collection,
    settings: Settings,
    folder: Path,
    workers: int | None,
    on_images: Callable[[int], object],
) -> None:
    needed = _bytes(collection, settings.size)
    if shutil.disk_usage(folder).free < needed + RESERVE:
        raise _full(folder.parent, needed)
    file = folder / cache_files.IMAGES
    with file.open("wb") as stream:
        stream.truncate(needed)
    reasons: dict[int, str] = {}
    decode = partial(_decode, settings=settings, file=file)
    for done, failed in parallel.over_chunks(decode, collection, workers):
        reasons.update(failed)
        on_images(done)
    good = np.array([row for row in range(len(collection)) if row not in reasons], dtype=np.int64)
    if not len(good):
        row, reason = next(iter(reasons.items()))
        raise InputError(
            f"{collection.root}: none of {len(collection):,} images could be read "
            f"({collection.paths[row]}: {reason}); check with 'cfal data check'"
        )
    _close_gaps(file, good, settings.size**2 * 3)
    columns = {"labels": collection.labels, "paths": collection.paths}
    if collection.groups is not None:
        columns["groups"] = collection.groups
    if collection.split is not None:
        columns["split"] = collection.split
    columns = {name: values[good] for name, values in columns.items()}
    np.savez(folder / cache_files.INDEX, **columns)
    cache = Cache(
        images=np.empty(0, np.uint8),
        class_names=collection.class_names,
        settings=settings,
        unreadable=tuple((str(collection.paths[row]), text) for row, text in reasons.items()),
        **columns,
    )
    header = json.dumps(cache_files.make_header(cache), indent=1)
    (folder / cache_files.HEADER).write_text(header, encoding="utf-8")


def _decode(chunk: parallel.Chunk, settings: Settings, file: Path) -> tuple[int, dict[int, str]]:
    """Write one chunk at its place; returns its length and the reasons of what failed, by row."""
    first, images = chunk
    failed = {}
    pixels = np.zeros((len(images), settings.size, settings.size, 3), np.uint8)
    for number, image in enumerate(images):
        try:
            opened = open_rgb(image) if isinstance(image, Path) else Image.fromarray(image)
            pixels[number] = square(opened, settings.size, settings.resampling)
        except Unreadable as error:
            failed[first + number] = str(error)
    _put(file, first, pixels)
    return len(images), failed


def _put(file: Path, first: int, pixels: np.ndarray) -> None:
    """Write rows at their place; a write, unlike a map, reports a full disk as an error."""
    with file.open("r+b", buffering=0) as stream:
        stream.seek(first * pixels[0].nbytes)
        view = memoryview(pixels).cast("B")
        while view:
            view = view[stream.write(view) :]


def _close_gaps(file: Path, good: np.ndarray, row_bytes: int) -> None:
    """Move the rows `good` (ascending) to the front and cut the rest off."""
    if file.stat().st_size == len(good) * row_bytes:
        return
    images = np.memmap(file, np.uint8, "r+").reshape(-1, row_bytes)
    for begin in range(0, len(good), MOVED):
        rows = good[begin : begin + MOVED]  # rows[i] >= begin + i: nothing is overwritten unread
        images[begin : begin + len(rows)] = images[rows]
    del images
    os.truncate(file, len(good) * row_bytes)


def _sync(path: Path) -> None:
    """Bring a file or a folder entry to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _bytes(collection: Collection, size: int) -> int:
    return len(collection) * size * size * 3


def _full(folder: Path, needed: int) -> InputError:
    return InputError(
        f"{folder}: the disk is too full for a cache of {needed / 2**20:,.0f} MiB; free some space "
        "or choose another disk with --to"
    )
