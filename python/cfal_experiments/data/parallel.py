"""Work on the images of a collection on all cores, a chunk of rows at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from cfal_experiments.data.collection import Collection
from cfal_experiments.data.layouts import npz
from cfal_experiments.errors import InputError

CHUNK = 256  # images per task: long against the hand-over, short against the whole
PROCESSES_FROM = 4096  # fewer files are decoded before further processes have started

#: The first row of a chunk, and its files, or its pixels `[n, h, w, 3]` where an .npz has them.
Chunk = tuple[int, list[Path] | np.ndarray]
Result = TypeVar("Result")


def over_chunks(
    function: Callable[[Chunk], Result], collection: Collection, workers: int | None = None
) -> Iterator[Result]:
    """Apply `function` to chunks of a collection; results come in the order of the rows.

    A bounded number of chunks is under way, so that an .npz is never read ahead whole.

    Args:
        function: of one chunk; must be picklable, since many files are shared among processes.
        collection: what to go through.
        workers: chunks at a time, all cores by default.

    Raises:
        InputError: a process was killed, or the .npz is damaged.
    """
    workers = workers or os.cpu_count() or 1
    if collection.layout == "npz":
        chunks = npz.stream(collection.root)
    else:
        chunks = (
            (first, [collection.file(row) for row in range(first, end)])
            for first in range(0, len(collection), CHUNK)
            for end in (min(first + CHUNK, len(collection)),)
        )
    with _pool(collection, workers) as pool:
        try:
            waiting = [pool.submit(function, chunk) for chunk in islice(chunks, 2 * workers)]
            while waiting:
                yield waiting.pop(0).result()
                waiting.extend(pool.submit(function, chunk) for chunk in islice(chunks, 1))
        except BrokenProcessPool as error:
            raise InputError(
                f"{collection.root}: a decoding process was killed, perhaps for memory; use fewer "
                "with --workers"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _pool(collection: Collection, workers: int) -> Executor:
    """Processes for many small files, which cost mostly Python's own time; else threads.

    A spawned process inherits no locks of libraries that have threads, such as torch's. The images
    of an .npz are decoded already, and resizing them releases Python's lock.
    """
    if workers > 1 and collection.layout != "npz" and len(collection) >= PROCESSES_FROM:
        return ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_leave_interrupts
        )
    return ThreadPoolExecutor(workers)


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
