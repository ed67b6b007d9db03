"""Zeroed counters by which the program that finishes last is found.

Kernels on one stream run one after the other and leave their counters at 0, so a stream needs one
set. A captured graph may run beside its own stream, and beside other graphs: each captured call
gets counters of its own, for good. All lie in one table for a device. Where that is used up, a call
gets new ones, at the price of a fill.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

#: Counters of a stream; a call that needs more gets new ones.
COUNT = 1024
#: Counters of a device: 1 MiB of int32.
TABLE = 1 << 18
#: Counters are handed out by 32 bytes: a kernel is compiled for 16-byte aligned pointers.
UNIT = 8


class Table:
    """Hands out the counters of one device from the front."""

    def __init__(self, counters: Tensor) -> None:
        self._counters = counters
        self._used = 0
        self._of_stream: dict[int, Tensor] = {}

    def take(self, count: int) -> Tensor | None:
        """`count` counters that nobody else gets, or None if fewer are left."""
        begin, end = self._used, self._used + count
        if end > len(self._counters):
            return None
        self._used = -(-end // UNIT) * UNIT
        return self._counters[begin:end]

    def of_stream(self, stream: int) -> Tensor | None:
        """The `COUNT` counters of a stream, or None if there are none left for it."""
        found = self._of_stream.get(stream)
        if found is None and (found := self.take(COUNT)) is not None:
            self._of_stream[stream] = found
        return found


_tables: dict[int, Table] = {}
_lock = threading.Lock()


def tickets(device: torch.device, count: int) -> Tensor:
    """At least `count` int32 zeros on `device`, for a kernel that leaves them at 0.

    The device must be the current one: what a call gets belongs to its current stream.
    """
    found = _of_table(device, count) if device.type == "cuda" else None
    return torch.zeros(count, dtype=torch.int32, device=device) if found is None else found


def _of_table(device: torch.device, count: int) -> Tensor | None:
    capturing = torch.cuda.is_current_stream_capturing()
    with _lock:
        table = _tables.get(device.index)
        if table is None:
            if capturing:  # a capture must not wait for the table's zeros
                return None
            table = _tables[device.index] = Table(_allocate(device))
        if capturing:
            return table.take(count)
        if count > COUNT:
            return None
        return table.of_stream(torch.cuda.current_stream(device).cuda_stream)


def _allocate(device: torch.device) -> Tensor:
    """A table of zeros, outside of any memory pool that the calling thread allocates from.

    A call under torch.compile's CUDA graphs allocates from a pool whose memory later graphs take
    again, whoever still holds it. Pools are a thread's own, so another thread evades them.
    """

    def work() -> Tensor:
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            counters = torch.zeros(TABLE, dtype=torch.int32, device=device)
        stream.synchronize()  # from now on every stream may use it
        return counters

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
