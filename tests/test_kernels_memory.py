"""What does not fit the budget is computed again: still right, and in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from cfal_kernels import _regime, ops
from support_kernels import (
    FEW,
    MANY,
    Sample,
    assert_close_to,
    every_dtype,
    needs_kernels,
    same_package,
    value_and_grads,
)
from truth import Truth

#: Elements that the kernels for many prototypes may save: affinities, and a pair or moment matrix.
AFFINITIES, MATRIX = 1 << 22, 1 << 20


@lru_cache
def exact_for(sample: Sample) -> Truth:
    """By the kernels for few prototypes in float64, which others hold to long double.

    They neither take products nor recompute anything; long double would take minutes here.
    """
    f, w, y = sample.inputs()
    keywords = {**sample.keywords, "reduction": "none"}
    return Truth(*value_and_grads(FEW, f, w, y, sample.upstream(), **keywords))


@needs_kernels
@every_dtype
@pytest.mark.parametrize(
    "sample",
    [
        Sample(2100, 2100, dim=6),
        Sample(2100, 1050, 2, dim=6, offset=20.0),
        Sample(2300, 2100, dim=16, distance=0.05),  # sparse hinges in rows that come back
        Sample(5, 1025, dim=1025),  # pairs
        Sample(5, 1040, dim=1030),  # moments
        Sample(3, 1025, dim=1025, offset=20.0),
    ],
    ids=str,
)
def test_recomputed_parts_are_accurate(sample, dtype):
    count = sample.classes * sample.centres
    saved = ops.saved_numel(_regime.MANY, sample.rows, count, sample.dim)
    assert saved < sample.rows * count + min(count, sample.dim) ** 2  # something is not kept
    got = value_and_grads(
        MANY, *sample.inputs(dtype), sample.upstream(dtype), reduction="none", **sample.keywords
    )
    assert_close_to(exact_for(sample), got, dtype)


@needs_kernels
@pytest.mark.parametrize("rows", [0, 1, 511, 2048, 4096, 10**6])
@pytest.mark.parametrize("count", [65, 1000, 8142, 10**5, 10**7])
@pytest.mark.parametrize("dim", [8, 512, 4096])
def test_saved_buffer_keeps_to_its_budget(rows, count, dim):
    saved = ops.saved_numel(_regime.MANY, rows, count, dim)
    # A kept row carries its affinities and at most 8 numbers about itself.
    assert (
        saved <= min(rows * count, AFFINITIES) + 8 * min(rows, AFFINITIES // count + 1) + MATRIX + 8
    )


@needs_kernels
@pytest.mark.parametrize("rows,count,dim", [(4096, 9, 512), (32, 9, 128), (100, 64, 16)])
def test_saved_coefficients_of_few_prototypes(rows, count, dim):
    saved = ops.saved_numel(_regime.FEW, rows, count, dim)
    assert saved == (rows + count) * (count + 1)


MEASURE = """
import json, re, sys
import torch
import cfal_kernels as cfal

def peak():  # high-water mark of resident memory, in bytes
    status = open("/proc/self/status").read()
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status)[1])

def step(rows, classes, dim, offset):
    f = (torch.randn(rows, dim) + offset).requires_grad_()
    w = (torch.randn(classes, dim) + offset).requires_grad_()
    y = torch.randint(classes, (rows,))
    f.grad, w.grad = torch.ones_like(f), torch.ones_like(w)
    open("/proc/self/clear_refs", "w").write("5")  # the mark falls back to what is resident now
    before = peak()
    loss = cfal.cfal_loss(f, w, y, sigma=2.0 * dim, backend="cpu")
    grads = torch.autograd.grad(loss, (f, w))
    outputs = sum(g.numel() * g.element_size() for g in grads)
    return peak() - before - outputs

torch.set_num_threads(2)
step(128, 600, 512, 0.0)  # code and thread stacks are paged in
print(json.dumps(step(*map(int, sys.argv[1:4]), float(sys.argv[4]))))
"""


def extra_memory(rows: int, classes: int, dim: int, offset: float = 0.0) -> int:
    """Bytes beyond inputs and gradients that forward and backward take, in a fresh process."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(rows), str(classes), str(dim), str(offset)],
        # What is freed goes back to the system at once: resident is then what is held.
        env=same_package(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536"),
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    if "clear_refs" in result.stderr:
        pytest.skip("this system does not let a process reset its memory mark")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@needs_kernels
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
class TestPeak:
    @pytest.mark.parametrize("offset", [0.0, 2.0])  # prototypes as they are, about their mean
    def test_many_prototypes_stay_under_a_quarter_of_the_affinities(self, offset):
        rows, classes, dim = 4096, 8142, 512
        assert extra_memory(rows, classes, dim, offset) < rows * classes * 4 / 4

    def test_more_rows_cost_nothing_but_their_loss(self):
        small, large = extra_memory(4096, 2050, 16), extra_memory(12288, 2050, 16)
        # A few numbers a row, and the copies that an allocator keeps: 8 MiB of slack.
        assert large - small < 8192 * 64 + (8 << 20)

    def test_few_prototypes_take_coefficients_only(self):
        rows, classes, dim = 20000, 9, 64
        budget = 4 * (rows + classes) * (classes + 1) + 8 * rows  # coefficients, loss in double
        assert extra_memory(rows, classes, dim) < budget + (4 << 20)
