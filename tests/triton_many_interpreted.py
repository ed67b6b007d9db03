"""The Triton kernels for many prototypes under the interpreter, which `test_triton.py` turns on."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from cfal_kernels.triton import config, many, many_saved, operators
from support import problem, relative_error
from support_kernels import (
    F32,
    F64,
    GPU_KERNELS,
    TOLERANCE,
    Sample,
    assert_accurate,
    assert_close_to,
    assert_memory_does_not_matter,
    every_dtype,
    value_and_grads,
)
from truth import truth

_, MANY = GPU_KERNELS["triton-interpreted"]
BF16 = torch.bfloat16


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 16, and chunks of two of them: every loop is entered, left and entered again."""

    def columns(classes, centres, itemsize, half):
        m_p = config.power_of_two(centres)
        return max(16, m_p), m_p

    def tile(rows, classes, centres, dim, itemsize, half, in_parts):
        b_c, m_p = columns(classes, centres, itemsize, half)
        return config.ManyTile(16, b_c, m_p, 16, 16, 16, 4, 1)

    monkeypatch.setattr(config, "many_columns", columns)
    monkeypatch.setattr(config, "many_tile", tile)
    monkeypatch.setattr(config, "MANY_ROWS", 16)
    monkeypatch.setattr(config, "MANY_CHUNK", (512, 512))
    monkeypatch.setattr(many, "_ROW_PROGRAM", 16)


#: {1, T - 1, T, T + 1, 2 T + 3} for tiles T = 16 of rows, prototypes and features.
SIZES = (1, 15, 16, 17, 35)


@pytest.mark.usefixtures("small_tiles")
class TestTiles:
    @pytest.mark.parametrize("rows", SIZES)
    def test_rows(self, rows):
        assert_accurate(MANY, Sample(rows, 5, dim=3), F64)

    @pytest.mark.parametrize("classes", SIZES)
    def test_classes(self, classes):
        assert_accurate(MANY, Sample(3, classes, dim=2), F64)

    @pytest.mark.parametrize("dim", SIZES)
    def test_columns(self, dim):
        assert_accurate(MANY, Sample(4, 6, dim=dim), F32)

    @pytest.mark.parametrize("classes", [1, 4, 5])
    def test_classes_of_three_centres(self, classes):
        assert_accurate(MANY, Sample(6, classes, 3, dim=4), F64)

    @every_dtype
    def test_tails_in_every_direction_off_the_origin(self, dtype):
        assert_accurate(MANY, Sample(19, 18, 1, 17, offset=1e4), dtype)

    @every_dtype
    def test_closed_tiles(self, dtype):
        assert_accurate(MANY, Sample(20, 35, dim=12, distance=0.05), dtype)

    def test_rows_computed_again_are_the_same(self, monkeypatch):
        # First all of them are kept, then none, then some.
        f, w, y = Sample(35, 6, 3, 5).inputs(F32)
        kept = value_and_grads(MANY, f, w, y, sigma=10.0)
        for cache in (0, 32 * 16):
            monkeypatch.setattr(config, "MANY_CACHE", cache)
            assert many_saved.kept_rows(35, 32) == cache // 32
            again = value_and_grads(MANY, f, w, y, sigma=10.0)
            assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


@pytest.mark.parametrize(
    "sample,dtype",
    [
        (Sample(37, 70, dim=35), F32),
        (Sample(20, 66, dim=67), F64),
        (Sample(40, 22, 3, dim=11), F32),
    ],
    ids=str,
)
def test_tiles_as_on_a_device(sample, dtype):
    assert_accurate(MANY, sample, dtype)


def test_tiles_without_an_open_hinge_are_left_out(small_tiles, monkeypatch):
    # Rows on prototypes that lie far apart: only the classes of a pair see each other.
    listed = []
    kernel = many.gradients.list_kernel
    w = 10.0 * torch.eye(48, dtype=F64)[:, None]
    w[1] = w[0] + 0.1 * w[2]
    y = torch.arange(16) % 2
    f = w[y, 0].clone()

    class Spy:
        def __getitem__(self, grid):
            def launch(flags, lists, near, counts, *arguments, **options):
                kernel[grid](flags, lists, near, counts, *arguments, **options)
                listed.append(counts.view(-1, 3).clone())

            return launch

    monkeypatch.setattr(many.gradients, "list_kernel", Spy())
    keywords = {"sigma": 5.0, "diversity_weight": 0.0, "margin": 0.0, "gamma": 0.0}
    g = torch.ones(16, dtype=F64)
    f += 0.3 * (w[1, 0] - w[0, 0]) * torch.where(y == 0, 2.2, -2.2)[:, None]
    got = value_and_grads(MANY, f, w, y, g, reduction="none", **keywords)
    # The pairs of the one open tile are near: it is for the second launch.
    of_pair, of_others = [0, 1, 1], [0, 0, 0]
    assert [counts.tolist() for counts in listed] == [[of_pair], [of_pair, of_others, of_others]]
    assert_close_to(truth(f, w, y, g, **keywords), got, F64)


def next_to_other_prototypes(sample: Sample, distance: float):
    """Rows 3 to 18 so close to a prototype of another class that a sum of products loses f - w.

    The upstream gradient of the other rows lets those be most of both gradients.
    """
    f, w, y = sample.inputs()
    f[3:19] = w[(y[3:19] + 1) % len(w), -1] + distance * f[3:19]
    g = sample.upstream() * torch.where((torch.arange(len(f)) - 11).abs() <= 8, 1.0, distance)
    return f, w, y, g, {**sample.keywords, "diversity_weight": 0.0}


@pytest.mark.usefixtures("small_tiles")
class TestNearPairs:
    @pytest.mark.parametrize(
        "centres,dtype,distance,width,splits,cache",
        [(1, F32, 3e-4, 1 / 24, 1, 1 << 22), (3, F64, 3e-7, 1 / 6, 3, 0)],
        ids=["kept", "again-in-parts"],
    )
    def test_every_kind_of_tile(self, centres, dtype, distance, width, splits, cache, monkeypatch):
        monkeypatch.setattr(config, "MANY_CACHE", cache)
        monkeypatch.setattr(config, "many_splits", lambda programs, elements: splits)
        sample = Sample(35, 24 // centres, centres, dim=17, width=width)
        f, w, y, g, keywords = next_to_other_prototypes(sample, distance)
        f = f.to(dtype).double()
        left = torch.arange(35) != 7  # a row that is ignored, whatever it holds
        exact = truth(f[left], w, y[left], g[left], **keywords)
        f[7], y[7] = math.nan, -100
        loss, grad_f, grad_w = value_and_grads(
            MANY, f.to(dtype), w.to(dtype), y, g.to(dtype), reduction="none", **keywords
        )
        assert (grad_f[7] == 0.0).all()
        assert_close_to(exact, (loss[left], grad_f[left], grad_w), dtype)
        rows = zip(grad_f[left][3:18], exact.grad_features[3:18], strict=True)
        assert max(relative_error(a, b) for a, b in rows) < TOLERANCE[dtype]

    def test_half_inputs(self):
        sample = Sample(20, 24, dim=17, width=1 / 6, offset=8.0)
        f, w, y, g, keywords = next_to_other_prototypes(sample, 1e-2)
        f, w = f.bfloat16(), w.bfloat16()
        exact = truth(f, w, y, g, **keywords)
        _, grad_f, grad_w = value_and_grads(MANY, f, w, y, g.float(), reduction="none", **keywords)
        for got, expected in ((grad_f, exact.grad_features), (grad_w, exact.grad_prototypes)):
            assert relative_error(got, expected) < torch.finfo(BF16).eps / 2


@every_dtype
class TestDoubt:
    """Hinges at the margin, and centres as near as each other, are decided exactly."""

    def test_duplicates_of_the_own_prototype(self, dtype):
        # lambda = 0 puts every one of these hinges at 0, where it is closed.
        f, w, y = Sample(9, 20, dim=7).inputs(dtype)
        w[:] = w[:1]
        loss, *grads = value_and_grads(
            MANY, f, w, y, margin=0.0, sigma=14.0, diversity_weight=0.0, gamma=0.0
        )
        assert loss == 0.0 and all((g == 0.0).all() for g in grads)

    def test_centres_as_near_as_each_other(self, dtype):
        f, w, y = Sample(9, 8, 3, 5).inputs()
        w[:, 1] = w[:, 0]  # the first is the nearest of the two
        g = torch.ones(9, dtype=F64)
        exact = truth(f, w, y, g, sigma=10.0, diversity_weight=0.0)
        got = value_and_grads(
            MANY, f.to(dtype), w.to(dtype), y, g.to(dtype),
            sigma=10.0, diversity_weight=0.0, reduction="none",
        )  # fmt: skip
        assert_close_to(exact, got, dtype)
        assert (got[2][:, 1] == 0.0).all()

    @pytest.mark.parametrize("sigma", [0.05, 1e8])
    def test_norms_far_from_sigma(self, sigma, dtype):
        f, w, y = Sample(11, 20, dim=5).inputs()
        g = torch.ones(11, dtype=F64)
        exact = truth(f, w, y, g, sigma=sigma, diversity_weight=0.0)
        got = value_and_grads(
            MANY, f.to(dtype), w.to(dtype), y, g.to(dtype),
            sigma=sigma, diversity_weight=0.0, reduction="none",
        )  # fmt: skip
        assert_close_to(exact, got, dtype)

    @pytest.mark.parametrize("shift", [-1e-9, 1e-9])
    def test_hinges_next_to_the_margin(self, shift, dtype):
        # Closer to 0 than any float32 product could tell, on either side.
        f, w, y = Sample(6, 2, dim=3).inputs()
        for i in range(6):
            a = torch.exp(-(f[i] - w[:, 0]).square().sum(1) / 6.0)
            keywords = {"sigma": 6.0, "diversity_weight": 0.0, "gamma": 0.0, "reduction": "sum"}
            margin = (a[y[i]] - a[1 - y[i]]).item() + shift
            inputs = f[i : i + 1].to(dtype), w.to(dtype), y[i : i + 1]
            _, grad_f, grad_w = value_and_grads(MANY, *inputs, margin=margin, **keywords)
            assert (grad_f != 0.0).any() == (grad_w != 0.0).any() == (shift > 0.0)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "gamma,centres,reduction", [(0.0, 1, "mean"), (0.5, 3, "none"), (2.0, 1, "none")]
)
def test_gradcheck(gamma, centres, reduction):
    f, w, y = problem(5, 6 // centres, centres, 4)
    y[1] = -100

    def loss(f, w):
        return MANY(f, w, y, sigma=10.0, gamma=gamma, reduction=reduction)

    assert gradcheck(loss, (f, w), fast_mode=True)


@pytest.mark.parametrize("dtypes", [(BF16, BF16), (torch.float16,) * 2, (BF16, F32)], ids=str)
def test_half_inputs(dtypes):
    sample = Sample(17, 20, dim=40)
    f, w, y = sample.inputs()
    f, w = f.to(dtypes[0]), w.to(dtypes[1])
    exact = truth(f, w, y, sample.upstream(), **sample.keywords)
    loss, *grads = value_and_grads(
        MANY, f, w, y, sample.upstream(F32), reduction="none", **sample.keywords
    )
    assert loss.dtype == F32 and relative_error(loss, exact.loss) < TOLERANCE[F32]
    for got, expected, dtype in zip(
        grads, (exact.grad_features, exact.grad_prototypes), dtypes, strict=True
    ):
        rounding = torch.finfo(dtype).eps / 2 if dtype != F32 else 0.0
        assert got.dtype == dtype
        assert relative_error(got, expected) < TOLERANCE[F32] + rounding


def test_layouts_and_int32_targets_change_nothing():
    f, w, y = Sample(9, 18, 2, 7).inputs(F32)
    g = torch.linspace(-1.0, 2.0, 9)
    options = {"sigma": 14.0, "reduction": "none"}
    expected = value_and_grads(MANY, f, w, y, g, **options)
    strided = f.t().contiguous().t(), torch.stack((w, w), -1)[..., 0], torch.stack((y, y), 1)[:, 0]
    misaligned = torch.cat((f.new_zeros(1), f.flatten()))[1:].view(f.shape), w, y.int()
    for inputs in (strided, misaligned):
        got = value_and_grads(MANY, *inputs, torch.stack((g, g), 1)[:, 0], **options)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_row_counts(rows, reduction):
    f, w, y = torch.full((rows, 5), math.nan), torch.randn(20, 1, 5), torch.full((rows,), -100)
    loss, *grads = value_and_grads(MANY, f, w, y, reduction=reduction)
    assert loss.isnan() if reduction == "mean" else loss == 0.0
    assert all((g == 0.0).all() for g in grads)


def test_ignored_rows_count_nowhere():
    sample = Sample(20, 18, dim=6)
    f, w, y = sample.inputs(F64)
    y[::3] = -100
    f[::3] = math.nan
    left = y != -100
    got = value_and_grads(MANY, f, w, y, **sample.keywords)
    expected = value_and_grads(MANY, f[left], w, y[left], **sample.keywords)
    assert (got[1][~left] == 0.0).all()
    for a, b in zip((got[0], got[1][left], got[2]), expected, strict=True):
        assert relative_error(a, b) < 1e-13


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_reach_loss_and_gradients(value):
    f, w, y = Sample(5, 18, 2, 6).inputs(F32)
    f[2, 3] = value
    rows, grad_f, grad_w = value_and_grads(MANY, f, w, y, torch.ones(5), reduction="none")
    hit = torch.arange(5) == 2
    assert torch.equal(rows.isnan(), hit) and torch.equal(grad_f.isnan().any(1), hit)
    assert not grad_w.isfinite().all()
    f, w, y = Sample(5, 18, 2, 6).inputs(F32)
    w[3, 1, 5] = value
    assert MANY(f, w, y, reduction="none", diversity_weight=0.0).isnan().all()


@every_dtype
def test_norms_that_overflow_are_merely_far(dtype):
    f, w, y = Sample(7, 18, dim=5).inputs(dtype)
    g, keywords = torch.ones(7, dtype=dtype), {"sigma": 10.0, "reduction": "none"}
    before = value_and_grads(MANY, f, w, y, g, **keywords)
    f[3] = 1e25 if dtype == F32 else 1e200
    rows, grad_f, _ = value_and_grads(MANY, f, w, y, g, **keywords)
    others = torch.arange(7) != 3
    assert relative_error(rows[others], before[0][others]) < TOLERANCE[dtype]
    assert relative_error(grad_f[others], before[1][others]) < TOLERANCE[dtype]
    assert rows[3].isfinite() and (grad_f[3] == 0.0).all()


def test_targets_out_of_range():
    f, w, y = problem(classes=20)
    y[3] = 29
    with pytest.raises(ValueError, match="target holds 29 at position 3"):
        MANY(f, w, y)


def test_products_are_as_exact_as_the_user_asks_for():
    before = torch.get_float32_matmul_precision()
    try:
        found = {}
        for setting in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(setting)
            found[setting] = many.product_precision(F32)
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == {"highest": ("tf32x3", 2), "high": ("tf32", 2), "medium": ("tf32", 1)}
    assert many.product_precision(F64)[0] == "ieee"


def test_budgets_bound_what_is_held():
    for rows, classes in ((8192, 1000), (32768, 10000), (10**6, 100), (64, 10**6)):
        f, w = torch.empty(rows, 512, device="meta"), torch.empty(classes, 1, 512, device="meta")
        layout = many_saved.Layout.of(f, w, F32)
        assert layout.kept * layout.columns <= config.MANY_CACHE
        extra = 16 * (rows + layout.columns + 512) + layout.kept * layout.tiles // 16 + layout.tiles
        assert layout.numel - layout.kept * layout.columns <= extra
        step = config.many_chunk(rows, layout.columns)
        most = max(rows * layout.columns // 16, config.MANY_CHUNK[0])
        assert step % config.MANY_ROWS == 0
        assert step * layout.columns <= max(most, config.MANY_ROWS * layout.columns)


def arguments(reduction: int, centres: int) -> tuple:
    f, w, y = problem(35, 18 // centres, centres, 17, dtype=F32)
    weights = torch.linspace(0.5, 1.5, 18 // centres)
    return f.detach(), w.detach(), y, weights, 66.0, 0.1, 2.0, 1.0, False, reduction, -100, 1, True


@pytest.mark.usefixtures("small_tiles")
class TestOperators:
    @pytest.mark.parametrize("reduction,centres", [(0, 3), (1, 1)])
    def test_opcheck(self, reduction, centres):
        args = arguments(reduction, centres)
        loss, saved = operators.OPERATORS.forward(*args)
        backward = (torch.ones_like(loss), saved, *args[:-1], True, True)
        # What is saved holds room that nobody reads, and float64 under a float32 name: nothing to
        # compare by value.
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        outcome = torch.library.opcheck(operators.OPERATORS.forward, args, test_utils=tests)
        assert set(outcome.values()) == {"SUCCESS"} and len(outcome) == 3
        outcome = torch.library.opcheck(operators.OPERATORS.backward, backward, test_utils=tests)
        assert set(outcome.values()) == {"SUCCESS"} and len(outcome) == 3

    def test_results_do_not_depend_on_what_memory_held(self, monkeypatch):
        monkeypatch.setattr(config, "MANY_CACHE", 16 * 32)  # a part of the rows
        args = arguments(0, 3)
        assert_memory_does_not_matter(operators.OPERATORS, args, monkeypatch)


def test_compile_without_a_break():
    def step(f, w, y):
        return MANY(2.0 * f, w, y, sigma=10.0)

    fast = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (9, 12):
        f, w, y = problem(rows, 18, dtype=F32)
        got = torch.autograd.grad(fast(f, w, y), (f, w))
        expected = torch.autograd.grad(step(f, w, y), (f, w))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
