"""The CUDA kernels' arithmetic, launch plans and operators, emulated on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

import cfal_kernels as cfal
from cuda_emulation import EMULATED, device, needs_emulation, operators
from oracle import NAMES, load, requires_oracle
from support import problem, relative_error
from support_kernels import F32, Sample, assert_accurate, every_dtype, value_and_grads
from truth import requires_long_double

pytestmark = needs_emulation

#: Around the tiles: 4 and 2 rows of a warp, 32 and 16 of a block, 12 and 8 prototypes of a pass,
#: 128 and 64 columns of a segment; blocks that share the pairs, chunks of rows.
SHAPES = {
    "one": Sample(1, 1, dim=1),
    "two-classes": Sample(5, 2, dim=3),
    "segment-less-one": Sample(31, 9, dim=127),
    "segment": Sample(32, 12, dim=128),
    "segment-and-one": Sample(33, 13, dim=129),
    "two-segments-and-rest": Sample(67, 5, dim=259),
    "passes": Sample(9, 25, dim=40),
    "most-prototypes": Sample(6, 64, dim=70),
    "centres": Sample(40, 9, 3, dim=300),
    "shared-pairs": Sample(9, 9, dim=1000),
    "few-shared-pairs": Sample(2, 3, dim=11000),
    "rows-shared-by-warps": Sample(3, 4, dim=1100),
    "chunks": Sample(600, 3, dim=8),
    "many-tiles": Sample(70, 3, dim=8400),
    "near": Sample(40, 9, dim=32, distance=1e-3),
    "far": Sample(40, 9, dim=32, distance=6.0),
    "off-origin": Sample(40, 9, dim=32, offset=50.0),
}


@requires_long_double
@every_dtype
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name, dtype):
    assert_accurate(EMULATED, SHAPES[name], dtype)


@requires_oracle
@every_dtype
@pytest.mark.parametrize("name", NAMES)
def test_oracle(name, dtype):
    case = load(name)
    for value, gradient, more in (
        ("cfal_mean", "grad_cfal_full", {}),
        ("cfal_mean", "grad_cfal_sg", {"detach_focal": True}),
        ("cfal", "grad_cfal_full_none", {"reduction": "none"}),
    ):
        upstream = case.tensor("grad_out", dtype) if more.get("reduction") else None
        keywords = {**case.keywords(dtype), **more}
        loss, *grads = value_and_grads(EMULATED, *case.inputs(dtype), upstream, **keywords)
        assert relative_error(loss, case.tensor(value)) < case.tolerance(dtype)
        for side, grad in zip("fW", grads, strict=True):
            expected = case.tensor(f"{gradient}_{side}")
            if expected.isfinite().all():  # Keras gives NaN on a prototype
                assert relative_error(grad, expected) < case.tolerance(dtype), (gradient, side)
            else:
                assert grad.isfinite().all()


def against_reference(f, w, y, tolerance, upstream=None, **keywords):
    got = value_and_grads(EMULATED, f, w, y, upstream, **keywords)
    wide = (x.detach().double() for x in (f, w))
    expected = value_and_grads(cfal.reference.cfal_loss, *wide, y, upstream, **keywords)
    for actual, exact, like in zip(got, expected, (None, f, w), strict=True):
        assert like is None or actual.dtype == like.dtype
        assert relative_error(actual, exact) < tolerance
    return got


@pytest.mark.parametrize("dtype,tolerance", [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("dim", [256, 263])  # 16-byte rows, and rows that are read one by one
def test_half_types(dtype, tolerance, dim):
    """Their gradients are rounded once, to 11 and 8 bits."""
    f, w, y = problem(20, 9, dim=dim, dtype=dtype)
    against_reference(f, w, y, tolerance, sigma=2.0 * dim, reduction="sum")
    f32 = w.detach().float()
    against_reference(f, f32, y, tolerance, sigma=2.0 * dim, reduction="sum")
    against_reference(f, f32.double(), y, tolerance, sigma=2.0 * dim, reduction="sum")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_layouts(reduction):
    f, w, y = problem(37, 9, dim=132, dtype=F32)
    keywords = {"sigma": 264.0, "reduction": reduction}
    expected = against_reference(f, w, y, 1e-5, **keywords)
    wide = torch.zeros(37, 2 * 132)
    wide[:, ::2] = f.detach()
    shifted = torch.zeros(37 * 132 + 1)[1:].view(37, 132).copy_(f.detach())
    for features in (f.detach().t().contiguous().t(), wide[:, ::2], shifted):
        got = against_reference(features, w, y.int(), 1e-5, **keywords)
        assert relative_error(got[0], expected[0]) < 1e-6
    against_reference(f, w.detach()[:, :, :1].expand(9, 1, 132), y, 1e-5, **keywords)
    against_reference(f.detach()[:1].expand(37, 132), w, y, 1e-5, **keywords)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("size", [dict(classes=4, dim=6), dict(classes=3, centres=3, dim=4)])
def test_gradcheck(gamma, size):
    f, w, y = problem(5, **size)
    y[1] = -100
    for reduction in ("none", "mean"):
        assert gradcheck(
            lambda f, w, r=reduction: EMULATED(f, w, y, sigma=10.0, gamma=gamma, reduction=r),
            (f, w),
        )


def test_gradients_of_one_input_alone():
    f, w, y = problem(20, 5, dim=140)
    _, grad_f, grad_w = value_and_grads(EMULATED, f, w, y, sigma=280.0)
    assert torch.equal(torch.autograd.grad(EMULATED(f, w.detach(), y, sigma=280.0), f)[0], grad_f)
    assert torch.equal(torch.autograd.grad(EMULATED(f.detach(), w, y, sigma=280.0), w)[0], grad_w)


@pytest.mark.parametrize("name", ["chunks", "shared-pairs", "most-prototypes", "centres"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_order_of_threads_and_blocks_does_not_matter(name, reduction):
    """A missing barrier, or a sum in the order of arrival, would show."""
    sample = SHAPES[name]
    f, w, y = sample.inputs(F32)
    upstream = sample.upstream(F32) if reduction == "none" else None
    results = []
    for order in ("forward", "backward"):
        with device(order=order):
            keywords = {**sample.keywords, "reduction": reduction}
            results.append(value_and_grads(EMULATED, f, w, y, upstream, **keywords))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@requires_long_double
@pytest.mark.parametrize("shared", [48, 228])
def test_other_sizes_of_shared_memory(shared):
    with device(shared=shared):
        for name in ("two-segments-and-rest", "centres", "rows-shared-by-warps"):
            assert_accurate(EMULATED, SHAPES[name], F32)


def test_two_backwards_and_saved_buffer():
    f, w, y = problem(40, 9, dim=33, dtype=F32)
    loss = EMULATED(f, w, y, sigma=66.0)
    first = torch.autograd.grad(loss, (f, w), retain_graph=True)
    second = torch.autograd.grad(loss, (f, w))
    assert all(map(torch.equal, first, second))


class TestCorners:
    def test_nan_and_inf_reach_the_loss(self):
        f, w, y = problem(6, 4, dim=150, dtype=F32)
        f = f.detach().clone()
        f[1, 3], f[2, 140], f[3, 0] = float("nan"), float("inf"), -float("inf")
        rows = EMULATED(f, w, y, sigma=300.0, reduction="none")
        assert rows.isnan().tolist() == [False, True, True, True, False, False]
        assert EMULATED(f, w, y, sigma=300.0).isnan()

    @pytest.mark.parametrize("classes", [2, 4])
    def test_a_nan_prototype_reaches_every_row(self, classes):
        f, w, y = problem(6, classes, 2, dim=5)
        w = w.detach().clone()
        w[1, 1, 2] = float("nan")
        assert EMULATED(f, w, y, reduction="none").isnan().all()

    def test_a_nan_prototype_reaches_no_ignored_row(self):
        f, w, y = problem(6, 4, 2, dim=5)
        w = w.detach().clone()
        y[2], w[1, 1, 2] = -100, float("nan")
        upstream = torch.ones(6, dtype=f.dtype)
        rows, grad_f, _ = value_and_grads(EMULATED, f, w, y, upstream, reduction="none")
        assert rows[2] == 0.0 and (grad_f[2] == 0.0).all()
        assert rows[[0, 1, 3, 4, 5]].isnan().all()

    def test_ignored_rows_count_nowhere(self):
        f, w, y = problem(9, 4, dim=140)
        y[2] = y[5] = 7
        f.data[2] = float("nan")
        kept = [0, 1, 3, 4, 6, 7, 8]
        expected = value_and_grads(EMULATED, f[kept], w, y[kept], sigma=280.0)
        got = value_and_grads(EMULATED, f, w, y, sigma=280.0, ignore_index=7)
        assert relative_error(got[0], expected[0]) < 1e-15
        assert relative_error(got[1][kept], expected[1]) < 1e-15
        assert (got[1][[2, 5]] == 0).all() and relative_error(got[2], expected[2]) < 1e-15

    def test_nothing_counts(self):
        f, w, y = problem(5, 4, dim=6)
        y[:] = -100
        mean, *grads = value_and_grads(EMULATED, f, w, y)
        assert mean.isnan() and not any(g.any() for g in grads)
        assert EMULATED(f, w, y, reduction="sum") == 0

    def test_an_empty_batch(self):
        f, w, y = problem(0, 4, dim=6)
        assert EMULATED(f, w, y).isnan() and EMULATED(f, w, y, reduction="none").shape == (0,)
        _, grad_f, grad_w = value_and_grads(EMULATED, f, w, y)
        assert grad_f.shape == (0, 6) and not grad_w.any()

    def test_distances_that_overflow_are_far(self):
        f, w, y = problem(4, 3, dim=5, dtype=F32)
        f = f.detach() * 1e25
        rows = EMULATED(f, w, y, reduction="none")
        assert rows.isfinite().all()
        assert relative_error(rows, cfal.reference.cfal_loss(f, w, y, reduction="none")) < 1e-5

    def test_a_row_on_its_prototype(self):
        for gamma in (0.0, 0.5, 2.0):
            f, w, y = problem(6, 4, dim=7)
            f.data = w.detach()[y, 0]
            against_reference(f, w, y, 1e-12, gamma=gamma, sigma=14.0)

    def test_a_target_out_of_range_asserts(self):
        f, w, y = problem(6, 4, dim=7)
        y[3] = 4
        with pytest.raises(RuntimeError, match="device-side assertion: y >= 0 && y < p_.C"):
            EMULATED(f, w, y)

    def test_too_many_prototypes_are_refused(self):
        f, w, y = problem(6, 65, dim=7)
        with pytest.raises(RuntimeError, match="up to 64 prototypes, got 65"):
            EMULATED(f, w, y)


def test_no_element_is_left_as_it_was_found():
    """Loss, saved buffer and gradients, whatever the memory held before."""
    f, w, y = problem(40, 5, dim=130, dtype=F32)
    y[3] = -100
    f, w = f.detach(), w.detach()
    arguments = (f, w, y, None, 260.0, 0.1, 2.0, 1.0, False, 1, -100, 0)
    results = []
    for fill in (float("nan"), 7.0):
        for numel in (1, 45 * 6, f.numel(), w.numel()):  # what the allocator hands out next
            _ = [torch.full((numel,), fill) for _ in range(8)]
        loss, saved = operators().forward(*arguments, True)
        grads = operators().backward(torch.ones(()), saved, *arguments, True, True)
        results.append((loss, saved, *grads))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
