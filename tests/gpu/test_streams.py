"""Streams and devices: the kernels go where torch's current stream and the tensors are."""

from __future__ import annotations

import threading

import pytest
import torch
from on_device import F32, every_kernel, needs_cuda, on_device, same_bits, sample_for, step

from support import forced_regime

pytestmark = [pytest.mark.gpu, needs_cuda]

CYCLES = 20_000_000  # some ten milliseconds of waiting on the device


@every_kernel
def test_another_stream_is_used(path):
    f, w, y, keywords = on_device(sample_for(path), F32)
    expected = step(path, f, w, y, **keywords)
    late = torch.full_like(f, float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # Kernels on any other stream would not wait, and read NaN.
        torch.cuda._sleep(CYCLES)
        late.copy_(f.detach())
        late.requires_grad_()
        got = step(path, late, w, y, **keywords)
    stream.synchronize()
    assert same_bits(got, expected)


@every_kernel
def test_calls_on_two_streams_at_once(path):
    """Whatever a call keeps between its blocks must be its own."""
    calls = [on_device(sample_for(path, rows, seed=rows), F32) for rows in (257, 1031)]
    expected = [step(path, f, w, y, **k) for f, w, y, k in calls]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in calls]
    results = [[], []]
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(CYCLES)
    for _ in range(20):
        for stream, (f, w, y, keywords), kept in zip(streams, calls, results, strict=True):
            with torch.cuda.stream(stream):
                kept.append(step(path, f, w, y, **keywords))
    torch.cuda.synchronize()
    for kept, alone in zip(results, expected, strict=True):
        assert all(same_bits(got, alone) for got in kept)


@every_kernel
def test_calls_from_two_threads(path):
    calls = [on_device(sample_for(path, rows, seed=rows), F32) for rows in (257, 1031)]
    expected = [step(path, f, w, y, **k) for f, w, y, k in calls]
    torch.cuda.synchronize()
    results: list[list] = [[], []]

    def work(index: int) -> None:
        f, w, y, keywords = calls[index]
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                results[index].append(step(path, f, w, y, **keywords))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    with forced_regime(path.regime):  # a global of the tests: one value for both threads
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    torch.cuda.synchronize()
    for kept, alone in zip(results, expected, strict=True):
        assert len(kept) == 20 and all(same_bits(got, alone) for got in kept)


@every_kernel
def test_a_second_device(path):
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    f, w, y, keywords = on_device(sample_for(path), F32)
    expected = step(path, f, w, y, **keywords)
    f, w, y, keywords = on_device(sample_for(path), F32, "cuda:1")
    assert torch.cuda.current_device() == 0
    got = step(path, f, w, y, **keywords)
    assert torch.cuda.current_device() == 0
    assert all(x.device == torch.device("cuda:1") for x in got)
    assert same_bits([x.cpu() for x in got], [x.cpu() for x in expected])
