"""Who gets which counters, on a device made up here: no two calls that may overlap share any."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from cfal_kernels.triton import tickets as module
from cfal_kernels.triton.tickets import COUNT, Table, tickets

DEVICE = torch.device("cuda", 0)


class Machine:
    """A device with a current stream, which may be capturing."""

    def __init__(self, monkeypatch, size: int) -> None:
        self.stream, self.capturing, self.threads = 0, False, []
        monkeypatch.setattr(module, "_tables", {})
        monkeypatch.setattr(module, "TABLE", size)
        cuda = SimpleNamespace(
            is_current_stream_capturing=lambda: self.capturing,
            current_stream=lambda device: SimpleNamespace(cuda_stream=self.stream),
            Stream=lambda device: SimpleNamespace(synchronize=lambda: None),
            stream=lambda stream: threading.Lock(),  # any context manager
        )
        monkeypatch.setattr(module.torch, "cuda", cuda)
        zeros = torch.zeros

        def on_cpu(count, dtype, device):
            self.threads.append(threading.current_thread())
            return zeros(count, dtype=dtype)

        monkeypatch.setattr(module.torch, "zeros", on_cpu)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch, 2 * COUNT + 16)


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    begin, end = (x.data_ptr() for x in (a, b))
    return begin < end + b.nbytes and end < begin + a.nbytes


def test_a_stream_keeps_its_counters(machine):
    first = tickets(DEVICE, 1)
    assert tickets(DEVICE, 9).data_ptr() == first.data_ptr() and len(first) >= 9
    machine.stream = 7
    assert not overlap(tickets(DEVICE, 1), first)


def test_every_captured_call_has_its_own(machine):
    of_stream = tickets(DEVICE, 1)
    machine.capturing = True
    captured = [tickets(DEVICE, count) for count in (1, 3, 1)]
    every = [of_stream, *captured]
    assert not any(overlap(a, b) for i, a in enumerate(every) for b in every[:i])
    assert all(x.data_ptr() % 16 == 0 for x in every)  # else a kernel is compiled while capturing


def test_a_table_that_is_used_up(machine):
    kept = [tickets(DEVICE, 1)]
    machine.stream = 1
    kept.append(tickets(DEVICE, 1))
    machine.stream = 2
    fresh = tickets(DEVICE, 1)
    assert not any(overlap(fresh, x) for x in kept) and len(machine.threads) == 2
    machine.capturing = True
    assert len(tickets(DEVICE, 100)) == 100


def test_more_than_a_stream_has(machine):
    tickets(DEVICE, 1)
    assert len(tickets(DEVICE, COUNT + 1)) == COUNT + 1


def test_the_table_is_made_in_a_thread_of_its_own_and_not_while_capturing(machine):
    machine.capturing = True
    tickets(DEVICE, 1)
    assert machine.threads == [threading.current_thread()] and not module._tables
    machine.capturing = False
    tickets(DEVICE, 1)
    assert machine.threads[1] is not threading.current_thread()


def test_take_to_the_end():
    table = Table(torch.zeros(16, dtype=torch.int32))
    assert [len(table.take(n)) for n in (3, 8)] == [3, 8]
    assert table.take(1) is None
