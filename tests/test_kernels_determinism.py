"""Bitwise equal results: run to run, for any number of threads, whatever memory held before.

Instruction sets may round differently; each is held to the gate's accuracy in its own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernel_cases
from kernel_cases import CASES
from support import relative_error
from support_kernels import F32, F64, FEW, needs_kernels, same_package, value_and_grads

pytestmark = [needs_kernels, pytest.mark.xdist_group("determinism")]

ISAS = {"baseline": "", "avx2": "avx2", "avx512": "avx512vl"}  # and the processor flag each needs


def bits(x: torch.Tensor) -> torch.Tensor:
    """Elements as integers: -0 differs from 0, and NaN equals itself."""
    return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[
        x.element_size()
    ])  # fmt: skip


def same_bits(a, b) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(a, b, strict=True))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_bitwise_equal_over_runs_and_threads(name, threads):
    case = CASES[name]
    threads(1)
    first = case.run()
    runs = 20 if case.sample.rows * case.sample.classes * case.sample.dim < 4e6 else 5
    for run in range(runs):
        threads((1, 2, 4)[run % 3])
        assert same_bits(case.run(), first), f"run {run}, {torch.get_num_threads()} threads"


@pytest.mark.parametrize("name", CASES)
def test_loss_has_the_same_bits_without_gradients(name):
    loss, *_, alone = CASES[name].run()
    assert same_bits([loss], [alone])


@pytest.mark.parametrize("name", ["few", "many-moments", "many-rows-recomputed"])
def test_repeated_backward_is_bitwise_equal(name, threads):
    f, w, y, upstream, keywords = CASES[name].inputs()
    f.requires_grad_(), w.requires_grad_()
    threads(2)
    loss = CASES[name].path(f, w, y, **keywords)
    first = torch.autograd.grad(loss, (f, w), upstream, retain_graph=True)
    for count in (1, 4):
        threads(count)
        assert same_bits(torch.autograd.grad(loss, (f, w), upstream, retain_graph=True), first)


def in_another_process(tmp_path, **environment) -> dict:
    output = tmp_path / "results.pt"
    env = same_package(OMP_NUM_THREADS="2", **environment)
    command = [sys.executable, kernel_cases.__file__, output]
    subprocess.run(command, env=env, check=True, timeout=240)
    return torch.load(output)


@pytest.fixture(scope="module")
def here():
    return {name: case.run() for name, case in CASES.items()}


@pytest.mark.parametrize("fill", [127, 128])
def test_no_element_is_left_or_read_uninitialised(fill, here, tmp_path):
    # Memory holds 3e38 and -1e-38: fresh and reused the one way round, then the other. Covers
    # outputs, what is saved in between and the kernels' scratch memory.
    there = in_another_process(tmp_path, MALLOC_PERTURB_=str(fill))
    if not (there["fresh"] == 255 - fill).all():
        pytest.skip("this C library does not fill memory on request")
    for name, results in there["results"].items():
        assert all(r.isfinite().all() for r in results), name
        assert same_bits(results, here[name]), name


def offers(isa: str) -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return isa == "baseline"
    return not ISAS[isa] or ISAS[isa] in flags


@pytest.fixture(scope="module")
def exact():
    """The kernels for few prototypes in float64, which other tests hold to long double."""
    results = {}
    for name, case in CASES.items():
        f, w, y, upstream, keywords = case.inputs()
        upstream = None if upstream is None else upstream.double()
        results[name] = value_and_grads(FEW, f.double(), w.double(), y, upstream, **keywords)
    return results


def assert_all_accurate(results, exact):
    for name, case in CASES.items():
        tolerance = 1e-12 if case.dtype == F64 else 1e-5
        for got, expected in zip(results[name], exact[name], strict=False):
            rounding = torch.finfo(got.dtype).eps / 2 if got.dtype not in (F32, F64) else 0.0
            error = relative_error(got, expected)
            assert error < tolerance + rounding, (name, error)


def test_every_case_is_accurate(here, exact):
    assert_all_accurate(here, exact)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_accurate(isa, here, exact, tmp_path):
    if not offers(isa):
        pytest.skip(f"this processor has no {isa}")
    there = in_another_process(tmp_path, CFAL_CPU_ISA=isa)["results"]
    assert_all_accurate(there, exact)
    if isa == "baseline" and offers("avx2") and "CFAL_CPU_ISA" not in os.environ:
        # Other registers, other order of additions: proof that the variable was heeded.
        assert not same_bits(there["many-moments"], here["many-moments"])
