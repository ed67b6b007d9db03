"""The same bits every time, whatever memory held before and whatever else the device does."""

from __future__ import annotations

import pytest
import torch
from on_device import (
    DEVICE,
    F32,
    every_dtype,
    every_kernel,
    needs_cuda,
    on_device,
    same_bits,
    sample_for,
    step,
)

pytestmark = pytest.mark.gpu

RUNS = 20


@every_dtype
@every_kernel
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("rows,dim", [(133, 72), (2051, 515)])
def test_runs_agree_bit_by_bit(path, dtype, reduction, rows, dim):
    f, w, y, keywords = on_device(sample_for(path, rows, dim), dtype)
    y[1::17] = -100
    first = step(path, f, w, y, reduction=reduction, **keywords)
    for _ in range(RUNS):
        assert same_bits(step(path, f, w, y, reduction=reduction, **keywords), first)


@needs_cuda
@every_kernel
def test_runs_agree_on_a_busy_device(path):
    f, w, y, keywords = on_device(sample_for(path, 2051, 515), F32)
    first = step(path, f, w, y, **keywords)
    torch.cuda.synchronize()
    a, busy = torch.randn(4096, 4096, device=DEVICE), torch.cuda.Stream()
    for _ in range(RUNS):
        with torch.cuda.stream(busy):
            for _ in range(3):
                a = a @ a * 1e-3
        assert same_bits(step(path, f, w, y, **keywords), first)


@pytest.fixture
def poisoned_memory():
    """torch fills what it allocates with NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(before)


@every_dtype
@every_kernel
def test_no_element_is_left_or_read_uninitialised(path, dtype, request):
    f, w, y, keywords = on_device(sample_for(path), dtype)
    expected = step(path, f, w, y, **keywords)
    alone = path(f.detach(), w.detach(), y, **keywords)
    request.getfixturevalue("poisoned_memory")
    assert torch.empty(3, device=DEVICE).isnan().all()
    assert same_bits(step(path, f, w, y, **keywords), expected)
    assert same_bits([path(f.detach(), w.detach(), y, **keywords)], [alone])
    assert all(x.isfinite().all() for x in expected)


@every_kernel
def test_a_second_backward_repeats_the_first(path):
    f, w, y, keywords = on_device(sample_for(path), F32)
    loss = path(f, w, y, **keywords)
    first = torch.autograd.grad(loss, (f, w), retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.mul_(5.0)
    assert same_bits(torch.autograd.grad(loss, (f, w)), kept)
