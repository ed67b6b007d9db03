"""Decode and resize a collection once, into a cache."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from cfal_experiments.data import cache as cache_files
from cfal_experiments.data.cache import Cache, Settings
from cfal_experiments.data.collection import Collection
from cfal_experiments.data.decode import RESAMPLING, Unreadable, open_rgb, square
from cfal_experiments.data.layouts import npz
from cfal_experiments.errors import InputError

CHUNK = 256  # images per task: long against the hand-over, short against the whole
PROCESSES_FROM = 4096  # fewer files are decoded before further processes have started
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
            with _appearing(to) as partial:
                _write(collection, settings, partial, workers or os.cpu_count() or 1, on_images)
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
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left; the lock is ours
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        if to.exists():  # only with `overwrite`
            shutil.rmtree(to)
        partial.rename(to)
        _sync(to.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    collection: Collection,
    settings: Settings,
    folder: Path,
    workers: int,
    on_images: Callable[[int], object],
) -> None:
    needed = _bytes(collection, settings.size)
    if shutil.disk_usage(folder).free < needed + RESERVE:
        raise _full(folder.parent, needed)
    file = folder / cache_files.IMAGES
    with file.open("wb") as stream:
        stream.truncate(needed)
    decode = _decode_npz if collection.layout == "npz" else _decode_files
    reasons: dict[int, str] = {}
    for done, failed in decode(collection, settings, file, workers):
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


def _decode_files(
    collection: Collection, settings: Settings, file: Path, workers: int
) -> Iterator[tuple[int, dict[int, str]]]:
    """Decode files in chunks of rows; yields the number done and the failures among them."""
    jobs = (
        (
            first,
            [collection.file(row) for row in range(first, min(first + CHUNK, len(collection)))],
            settings,
            file,
        )
        for first in range(0, len(collection), CHUNK)
    )
    pool: Executor
    if workers > 1 and len(collection) >= PROCESSES_FROM:
        # Small files cost mostly Python's own time, which threads cannot share. A spawned process
        # inherits no locks of libraries with threads, such as torch's.
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_leave_interrupts
        )
    else:
        pool = ThreadPoolExecutor(workers)
    with pool:
        try:
            yield from _in_order(pool, _decode_chunk, jobs, 2 * workers)
        except BrokenProcessPool as error:
            raise InputError(
                f"{collection.root}: a decoding process was killed, perhaps for memory; use fewer "
                "with --workers"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _decode_chunk(job: tuple[int, list[Path], Settings, Path]) -> tuple[int, dict[int, str]]:
    first, files, settings, images = job
    failed = {}
    pixels = np.zeros((len(files), settings.size, settings.size, 3), np.uint8)
    for number, path in enumerate(files):
        try:
            pixels[number] = square(open_rgb(path), settings.size, settings.resampling)
        except Unreadable as error:
            failed[first + number] = str(error)
    _put(images, first, pixels)
    return len(files), failed


def _decode_npz(
    collection: Collection, settings: Settings, file: Path, workers: int
) -> Iterator[tuple[int, dict[int, str]]]:
    """Resize the images of an .npz; they are stored decoded, so that threads suffice."""
    jobs = ((first, images, settings, file) for first, images in npz.stream(collection.root))
    with ThreadPoolExecutor(workers) as pool:
        yield from _in_order(pool, _resize_chunk, jobs, 2 * workers)


def _resize_chunk(job: tuple[int, np.ndarray, Settings, Path]) -> tuple[int, dict[int, str]]:
    first, images, settings, file = job
    resized = [
        square(Image.fromarray(image), settings.size, settings.resampling) for image in images
    ]
    _put(file, first, np.stack(resized))
    return len(images), {}


def _in_order(pool: Executor, function: Callable, jobs: Iterator, ahead: int) -> Iterator:
    """`pool.map` with a bounded number of jobs in flight: an .npz must not be read ahead whole."""
    waiting = [pool.submit(function, job) for job in islice(jobs, ahead)]
    while waiting:
        yield waiting.pop(0).result()
        waiting.extend(pool.submit(function, job) for job in islice(jobs, 1))


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
    for begin in range(0, len(good), CHUNK):
        rows = good[begin : begin + CHUNK]  # rows[i] >= begin + i: nothing is overwritten unread
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
