"""The Triton kernels for few prototypes under the interpreter, which `test_triton.py` turns on."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from cfal_kernels import reference
from cfal_kernels.triton import operators
from support import problem, relative_error
from support_kernels import (
    F32,
    F64,
    GPU_KERNELS,
    TOLERANCE,
    Sample,
    assert_accurate,
    assert_memory_does_not_matter,
    every_dtype,
    value_and_grads,
)

FEW, _ = GPU_KERNELS["triton-interpreted"]

#: Around the tiles: 4 and 16 rows, powers of two of classes and centres, columns of 32 and 128;
#: chunks of 32 rows; far off the origin and next to the prototypes.
SAMPLES = (
    *(Sample(rows, 3, dim=3) for rows in (1, 3, 4, 5, 11, 65)),
    *(Sample(3, classes, dim=2) for classes in (1, 2, 7, 8, 9, 33)),
    *(Sample(5, classes, 3, dim=4) for classes in (1, 5, 21)),
    *(Sample(5, 3, dim=dim) for dim in (1, 31, 32, 33, 129, 259)),
    Sample(35, 9, 1, 67),
    Sample(9, 6, 3, 35, distance=0.02),
    Sample(9, 6, 2, 35, offset=1e4),
)


@every_dtype
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_accuracy(sample, dtype):
    assert_accurate(FEW, sample, dtype)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("centres", [1, 3])
def test_gradcheck(gamma, centres):
    f, w, y = problem(5, 3, centres, 4)
    y[1] = -100
    for reduction in ("none", "mean"):

        def loss(f, w, reduction=reduction):
            return FEW(f, w, y, sigma=10.0, gamma=gamma, reduction=reduction)

        assert gradcheck(loss, (f, w), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_gradients_are_rounded_to_nearest(dtype):
    f, w, y = problem(9, 5, 1, 21, dtype=dtype)
    loss, *got = value_and_grads(FEW, f, w, y, sigma=42.0)
    _, *full = value_and_grads(FEW, f.float(), w.float(), y, sigma=42.0)
    assert loss.dtype == F32
    for half, single in zip(got, full, strict=True):
        assert torch.equal(half, single.to(dtype))


def test_layouts_and_int32_targets_change_nothing():
    f, w, y = Sample(9, 6, 2, 7).inputs(F32)
    expected = value_and_grads(FEW, f, w, y, sigma=14.0)
    strided = f.t().contiguous().t(), torch.stack((w, w), -1)[..., 0], torch.stack((y, y), 1)[:, 0]
    misaligned = torch.cat((f.new_zeros(1), f.flatten()))[1:].view(f.shape), w, y.int()
    for inputs in (strided, misaligned):
        got = value_and_grads(FEW, *inputs, sigma=14.0)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_row_counts(rows, reduction):
    f, w, y = torch.full((rows, 5), math.nan), torch.randn(4, 1, 5), torch.full((rows,), -100)
    loss, *grads = value_and_grads(FEW, f, w, y, reduction=reduction)
    assert loss.isnan() if reduction == "mean" else loss == 0.0
    assert all((g == 0.0).all() for g in grads)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_reach_the_loss(value):
    f, w, y = Sample(5, 4, 2, 6).inputs(F32)
    f[2, 3] = value
    rows = FEW(f, w, y, reduction="none")
    assert rows[2].isnan() and rows[[0, 1, 3, 4]].isfinite().all()
    f, w, y = Sample(5, 4, 2, 6).inputs(F32)
    w[3, 1, 5] = value
    assert FEW(f, w, y, reduction="none").isnan().all()


def test_an_ignored_row_beside_a_prototype_that_is_not_finite():
    f, w, y = Sample(5, 4, 2, 6).inputs(F32)
    y[2], w[3, 1, 5] = -100, math.nan
    rows, grad_f, _ = value_and_grads(FEW, f, w, y, torch.ones(5), reduction="none")
    assert rows[2] == 0.0 and (grad_f[2] == 0.0).all()
    assert rows[[0, 1, 3, 4]].isnan().all()


@every_dtype
@pytest.mark.parametrize("sample", [Sample(35, 33, dim=4), Sample(35, 21, 3, dim=4)], ids=str)
def test_partial_sums_of_narrow_features(sample, dtype):
    """Few rows a program: its partial sums must not reach the coefficients behind them."""
    f, w, y = sample.inputs(dtype)
    got = value_and_grads(FEW, f, w, y, **sample.keywords)
    wide = (x.double() for x in (f, w))
    expected = value_and_grads(reference.cfal_loss, *wide, y, **sample.keywords)
    for a, b in zip(got, expected, strict=True):
        assert relative_error(a, b) < TOLERANCE[dtype]


def test_rows_on_their_prototypes_have_no_gradient():
    f, w, y = Sample(5, 4, 1, 6).inputs(F64)
    f[:] = w[y, 0]
    for gamma in (0.3, 1.0, 2.0):
        rows, grad_f, _ = value_and_grads(
            FEW, f, w, y, torch.ones(5, dtype=F64), gamma=gamma, reduction="none"
        )
        assert (rows == 0.0).all() and (grad_f == 0.0).all()


def test_targets_out_of_range():
    f, w, y = problem()
    y[3] = 9
    with pytest.raises(ValueError, match="target holds 9 at position 3"):
        FEW(f, w, y)


def arguments(reduction: int, centres: int) -> tuple:
    f, w, y = problem(70, 4, centres, 33, dtype=F32)
    weights = torch.linspace(0.5, 1.5, 4)
    return f.detach(), w.detach(), y, weights, 66.0, 0.1, 2.0, 1.0, False, reduction, -100, 0, True


@pytest.mark.parametrize("reduction,centres", [(0, 3), (1, 1)])
class TestOperators:
    def test_opcheck(self, reduction, centres):
        args = arguments(reduction, centres)
        loss, saved = operators.OPERATORS.forward(*args)
        backward = (torch.ones_like(loss), saved, *args[:-1], True, True)
        # Part of what is saved is float64 under a float32 name, and scratch that nobody reads: the
        # fourth check, which compares two forwards by value, has nothing to go by.
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        outcome = torch.library.opcheck(operators.OPERATORS.forward, args, test_utils=tests)
        assert set(outcome.values()) == {"SUCCESS"} and len(outcome) == 3
        outcome = torch.library.opcheck(operators.OPERATORS.backward, backward)
        assert set(outcome.values()) == {"SUCCESS"} and len(outcome) == 4

    def test_results_do_not_depend_on_what_memory_held(self, reduction, centres, monkeypatch):
        args = arguments(reduction, centres)
        assert_memory_does_not_matter(operators.OPERATORS, args, monkeypatch)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compile_without_a_break(reduction):
    def step(f, w, y):
        return FEW(2.0 * f, w, y, sigma=10.0, reduction=reduction).sum()

    f, w, y = problem(9, dtype=F32)
    fast = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(fast(f, w, y), (f, w))
    expected = torch.autograd.grad(step(f, w, y), (f, w))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
