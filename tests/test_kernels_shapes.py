"""Every size at which a kernel's loop changes course, every corner of the definition, every layout.

Sizes are {1, T - 1, T, T + 1, 2 T + 3} for each tile T of csrc/cpu; results against long double.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import cfal_kernels as cfal
from support import problem, relative_error
from support_kernels import (
    F32,
    F64,
    TOLERANCE,
    Sample,
    assert_accurate,
    assert_close_to,
    every_dtype,
    every_path,
    truth_of,
    value_and_grads,
)
from truth import requires_long_double, truth

#: Rows: registers 3, 4; tasks 32; products 64 to 256, growing at 512, 768, 1024; flushes 128;
#: chunks 512, 1024.
ROW_TILES = (3, 4, 32, 64, 128, 256, 512, 768, 1024)
#: Prototypes: registers 3, 4, 12; lanes 16; pairs 16; products 64, 128; double 256; hinges 64 x 16
#: lanes.
PROTOTYPE_TILES = (3, 4, 12, 16, 64, 128, 256, 1024)
#: Features: lanes up to 16; columns of a backward tile 64 and 256; distance block 512.
COLUMN_TILES = (4, 8, 16, 64, 128, 256, 512)


def sizes(tiles: tuple[int, ...]) -> list[int]:
    return sorted({n for t in tiles for n in (1, t - 1, t, t + 1, 2 * t + 3)})


@requires_long_double
@every_dtype
@every_path
class TestTiles:
    @pytest.mark.parametrize("rows", sizes(ROW_TILES))
    def test_rows(self, path, dtype, rows):
        assert_accurate(path, Sample(rows, classes=5, dim=3), dtype)

    @pytest.mark.parametrize("classes", sizes(PROTOTYPE_TILES))
    def test_classes(self, path, dtype, classes):
        assert_accurate(path, Sample(3, classes, dim=2), dtype)

    @pytest.mark.parametrize("classes", [1, 5, 21, 22, 43, 85, 86, 171])
    def test_classes_of_three_centres(self, path, dtype, classes):
        assert_accurate(path, Sample(5, classes, centres=3, dim=4), dtype)

    @pytest.mark.parametrize("centres", sizes((4, 16)))
    def test_centres(self, path, dtype, centres):
        assert_accurate(path, Sample(6, classes=3, centres=centres, dim=4), dtype)

    @pytest.mark.parametrize("dim", sizes(COLUMN_TILES))
    def test_columns(self, path, dtype, dim):
        assert_accurate(path, Sample(5, classes=6, dim=dim), dtype)

    @pytest.mark.parametrize("dim", [63, 64, 65, 69, 70, 71, 131])
    def test_diversity_by_pairs_and_by_moments(self, path, dtype, dim):
        # K = 70 on both sides of D: products of prototypes in each direction.
        assert_accurate(path, Sample(4, classes=70, dim=dim), dtype)

    @pytest.mark.parametrize("rows,classes,dim", [(67, 131, 35), (131, 67, 19), (35, 35, 131)])
    def test_tails_in_every_direction(self, path, dtype, rows, classes, dim):
        assert_accurate(path, Sample(rows, classes, dim=dim), dtype)
        assert_accurate(path, Sample(rows, classes, dim=dim, offset=50.0), dtype)

    @pytest.mark.parametrize("rows", [1027, 2051])
    def test_several_chunks_and_tiles(self, path, dtype, rows):
        # Chunks of rows and tiles of columns at once, in the backward that sums over both.
        assert_accurate(path, Sample(rows, classes=3, dim=70), dtype)

    @pytest.mark.parametrize("distance", [0.02, 0.3])
    def test_few_active_hinges(self, path, dtype, distance):
        # Near their own prototypes most hinges are closed: empty tiles and sparse ones.
        assert_accurate(path, Sample(140, classes=300, dim=12, distance=distance), dtype)


@requires_long_double
@every_path
@settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)  # fmt: skip
@given(
    rows=st.integers(1, 70),
    classes=st.integers(1, 80),
    centres=st.integers(1, 4),
    dim=st.integers(1, 40),
    distance=st.sampled_from([0.01, 1.0, 2.5]),
    offset=st.sampled_from([0.0, 0.0, 100.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape(path, rows, classes, centres, dim, distance, offset, seed):
    assume(path.takes(classes * centres))
    sample = Sample(rows, classes, centres, dim, distance, offset, seed)
    for dtype in (F64, F32):
        assert_accurate(path, sample, dtype)


@requires_long_double
@every_dtype
@every_path
class TestCorners:
    def check(self, path, dtype, f, w, y, **keywords):
        upstream = torch.linspace(-1.0, 2.0, len(y), dtype=F64).float().double()
        f, w = f.float().double(), w.float().double()
        exact = truth(f, w, y, upstream, **keywords)
        got = value_and_grads(
            path, f.to(dtype), w.to(dtype), y, upstream.to(dtype), reduction="none", **keywords
        )
        assert_close_to(exact, got, dtype)
        return got

    @pytest.mark.parametrize("classes", [1, 2])
    @pytest.mark.parametrize("centres", [1, 3])
    def test_one_and_two_classes(self, path, dtype, classes, centres):
        self.check(path, dtype, *Sample(9, classes, centres, 5).inputs(), sigma=10.0)

    def test_classes_without_samples(self, path, dtype):
        f, w, _ = Sample(9, 20, dim=5).inputs()
        y = torch.tensor([3, 17, 3]).repeat(3)
        *_, grad_w = self.check(path, dtype, f, w, y, sigma=10.0, diversity_weight=0.0)
        absent = torch.ones(20, dtype=torch.bool)
        absent[[3, 17]] = False
        assert (grad_w[absent] != 0.0).any()  # they still repel

    @pytest.mark.parametrize("centres", [1, 3])
    def test_duplicate_prototypes(self, path, dtype, centres):
        f, w, y = Sample(11, 8, centres, 5).inputs()
        w[3], w[5] = w[1], w[1]
        if centres > 1:
            w[:, 1] = w[:, 0]  # ties within a class as well
        *_, grad_w = self.check(path, dtype, f, w, y, sigma=10.0, diversity_weight=0.0)
        if centres > 1:
            assert (grad_w[:, 1] == 0.0).all()

    def test_all_prototypes_equal(self, path, dtype):
        f, w, y = Sample(11, 8, dim=5).inputs()
        self.check(path, dtype, f, w[:1].expand_as(w).clone(), y, sigma=10.0)

    @pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
    @pytest.mark.parametrize("classes", [6, 90])
    def test_features_on_prototypes(self, path, dtype, gamma, classes):
        f, w, y = Sample(11, classes, dim=5).inputs()
        f[:7] = w[y[:7], 0]
        rows, grad_f, _ = self.check(path, dtype, f, w, y, sigma=10.0, gamma=gamma)
        if gamma > 0.0:
            assert (rows[:7] == 0.0).all() and (grad_f[:7] == 0.0).all()

    @pytest.mark.parametrize("classes", [6, 90])
    def test_underflow_of_every_affinity(self, path, dtype, classes):
        f, w, y = Sample(11, classes, dim=5).inputs()
        f += 1e4
        rows, grad_f, grad_w = value_and_grads(
            path, f.to(dtype), w.to(dtype), y, diversity_weight=0.0, sigma=1.0, reduction="sum"
        )
        assert rows.item() == pytest.approx(11 * 0.1 * (classes - 1), rel=1e-6)
        assert (grad_f == 0.0).all() and (grad_w == 0.0).all()

    @pytest.mark.parametrize("margin", [-0.5, 0.0, 1.0])
    def test_margins(self, path, dtype, margin):
        f, w, y = Sample(11, 70, dim=5).inputs()
        self.check(path, dtype, f, w, y, sigma=10.0, margin=margin)

    @pytest.mark.parametrize("sigma", [0.05, 1e4, 1e8])
    def test_widths(self, path, dtype, sigma):
        f, w, y = Sample(11, 70, dim=5).inputs()
        self.check(path, dtype, f, w, y, sigma=sigma, diversity_weight=0.0)

    def test_ignored_rows(self, path, dtype):
        f, w, y = Sample(70, 9, dim=5).inputs()
        y[::3] = 255
        rows, grad_f, _ = self.check(path, dtype, f, w, y, sigma=10.0, ignore_index=255)
        assert (rows[::3] == 0.0).all() and (grad_f[::3] == 0.0).all()


@every_dtype
@every_path
class TestNothingCounts:
    """No row, or every row ignored: NaN for the mean, zero for the sum, zero gradients."""

    @pytest.mark.parametrize("rows", [0, 1, 67])
    @pytest.mark.parametrize("classes", [1, 4, 70])
    def test_no_counted_row(self, path, dtype, rows, classes):
        f = torch.full((rows, 5), math.nan, dtype=dtype)
        w, y = torch.randn(classes, 1, 5, dtype=dtype), torch.full((rows,), -100)
        for reduction in ("mean", "sum"):
            loss, grad_f, grad_w = value_and_grads(path, f, w, y, reduction=reduction)
            assert loss.isnan() if reduction == "mean" else loss == 0.0
            assert grad_f.shape == f.shape and (grad_f == 0.0).all()
            assert grad_w.shape == w.shape and (grad_w == 0.0).all()
        loss, *grads = value_and_grads(path, f, w, y, torch.ones(rows).to(dtype), reduction="none")
        assert loss.shape == (rows,) and (loss == 0.0).all()
        assert all((g == 0.0).all() for g in grads)


#: How a tensor may lie in memory; each keeps the values.
LAYOUTS = {
    "columns-sliced": lambda x: torch.cat((x, torch.full_like(x, 9.0)), -1)[..., : x.shape[-1]],
    "rows-sliced": lambda x: torch.stack((x, torch.full_like(x, 9.0)), 1)[:, 0],
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every-second-column": lambda x: torch.stack((x, x + 1.0), -1)[..., 0],
    "misaligned": lambda x: torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
}


@requires_long_double
@every_dtype
@every_path
class TestLayouts:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dim", [1, 7, 40])
    def test_features_and_prototypes(self, path, dtype, layout, dim):
        sample = Sample(9, 6, 2, dim)
        f, w, y = sample.inputs(dtype)
        place = LAYOUTS[layout]
        got = value_and_grads(
            path, place(f), place(w), y, sample.upstream(dtype), reduction="none",
            **sample.keywords,
        )  # fmt: skip
        assert_close_to(truth_of(sample), got, dtype)

    def test_prototypes_with_their_centres_first(self, path, dtype):
        sample = Sample(9, 6, 3, 7)
        f, w, y = sample.inputs(dtype)
        w = w.transpose(0, 1).contiguous().transpose(0, 1)
        assert not w.is_contiguous()
        got = value_and_grads(
            path, f, w, y, sample.upstream(dtype), reduction="none", **sample.keywords
        )
        assert_close_to(truth_of(sample), got, dtype)

    def test_expanded(self, path, dtype):
        # One row as nine, one width for all features, one target, one weight.
        _, w, _ = Sample(9, 6, dim=7).inputs(dtype)
        cases = (
            (torch.randn(1, 7, dtype=dtype).expand(9, 7), w, torch.arange(9) % 6),
            (torch.randn(9, 1, dtype=dtype).expand(9, 7), w, torch.arange(9) % 6),
            (torch.randn(9, 7, dtype=dtype), w, torch.tensor([2]).expand(9)),
            (torch.randn(9, 7, dtype=dtype), w[:1].expand(6, 1, 7), torch.arange(9) % 6),
        )
        weights = torch.tensor([0.7]).expand(6)
        for f, w, y in cases:
            keywords = {"sigma": 14.0, "class_weights": weights}
            got = value_and_grads(
                path, f, w, y, torch.ones(9, dtype=dtype), reduction="none", **keywords
            )
            exact = truth(f, w, y, torch.ones(9), **keywords)
            assert_close_to(exact, got, dtype)

    def test_targets_and_weights(self, path, dtype):
        f, w, y = Sample(9, 6, dim=7).inputs(dtype)
        weights = torch.linspace(0.5, 1.5, 6, dtype=F64)
        exact = value_and_grads(path, f, w, y, class_weights=weights.float(), sigma=14.0)
        for target in (y.int(), torch.stack((y, y + 100), 1)[:, 0], torch.stack((y, y)).int()[1]):
            for values in (weights.float(), torch.stack((weights, weights)).float().t()[:, 1]):
                got = value_and_grads(path, f, w, target, class_weights=values, sigma=14.0)
                assert all(torch.equal(a, b) for a, b in zip(got, exact, strict=True))
        _, got, _ = value_and_grads(path, f, w, y, class_weights=weights, sigma=14.0)
        assert relative_error(got, exact[1]) < 1e-6  # float64 weights of any compute type


@requires_long_double
@every_path
class TestDtypes:
    @pytest.mark.parametrize("f_dtype", [torch.float16, torch.bfloat16, F32, F64])
    @pytest.mark.parametrize("w_dtype", [torch.float16, torch.bfloat16, F32, F64])
    @pytest.mark.parametrize("classes", [9, 70])
    def test_mixed(self, path, f_dtype, w_dtype, classes):
        sample = Sample(37, classes, dim=21)
        f, w, y = sample.inputs()
        f, w = f.to(f_dtype), w.to(w_dtype)
        compute = F64 if F64 in (f_dtype, w_dtype) else F32
        exact = truth(f, w, y, sample.upstream(), **sample.keywords)
        loss, grad_f, grad_w = value_and_grads(
            path, f, w, y, sample.upstream(compute), reduction="none", **sample.keywords
        )
        assert (loss.dtype, grad_f.dtype, grad_w.dtype) == (compute, f_dtype, w_dtype)
        assert relative_error(loss, exact.loss) < TOLERANCE[compute]
        for got, expected in ((grad_f, exact.grad_features), (grad_w, exact.grad_prototypes)):
            # Rounded once to the input's dtype, to nearest. Subnormal float16: an absolute half.
            info = torch.finfo(got.dtype)
            tolerance = TOLERANCE[compute] + (info.eps / 2 if got.dtype != compute else 0.0)
            floor = info.smallest_normal * info.eps / 2 * got.numel() ** 0.5
            difference = (got.double() - expected).norm()
            assert difference <= tolerance * expected.norm() + floor

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_gradients_are_rounded_to_nearest(self, path, dtype):
        f, w, y = problem(rows=33, classes=9, dim=40, dtype=dtype)
        _, *got = value_and_grads(path, f, w, y, sigma=80.0, reduction="sum")
        _, *full = value_and_grads(path, f.float(), w.float(), y, sigma=80.0, reduction="sum")
        for half, single in zip(got, full, strict=True):
            assert (half == single.to(dtype)).float().mean() > 0.999

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_half_in_every_layout(self, path, layout):
        f, w, y = problem(rows=9, classes=6, centres=2, dim=7, dtype=torch.bfloat16)
        expected = value_and_grads(path, f, w, y, sigma=14.0)
        place = LAYOUTS[layout]
        got = value_and_grads(path, place(f.detach()), place(w.detach()), y, sigma=14.0)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    def test_half_inputs_that_are_subnormal_or_infinite(self, path):
        # Smallest subnormal, largest subnormal, largest, and what no float16 distance could hold.
        f = torch.tensor([[6e-8, 6.1e-5], [65504.0, -65504.0], [math.inf, 0.0]]).half()
        w = torch.tensor([[[0.0, 6e-8]], [[1.0, 1.0]], [[-2.0, 0.5]]]).half()
        y = torch.tensor([0, 1, 2])
        keywords = {"sigma": 1.0, "gamma": 1.0, "reduction": "none", "diversity_weight": 0.0}
        rows = path(f, w, y, **keywords)
        exact = cfal.reference.cfal_loss(f.double(), w.double(), y, **keywords)
        assert relative_error(rows[:2], exact[:2]) < TOLERANCE[F32]
        assert rows[2].isnan()


@every_dtype
@every_path
@pytest.mark.parametrize("classes", [4, 70])
@pytest.mark.parametrize("centres", [1, 2])
class TestNotFinite:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_row(self, path, dtype, classes, centres, value):
        f, w, y = Sample(67, classes, centres, 5).inputs(dtype)
        _, _, clean = value_and_grads(path, f, w, y, sigma=10.0, reduction="sum")
        f[13, 2] = value
        rows, grad_f, grad_w = value_and_grads(
            path, f, w, y, torch.ones(67).to(dtype), sigma=10.0, reduction="none"
        )
        hit = torch.arange(67) == 13
        assert torch.equal(rows.isnan(), hit)
        assert torch.equal(grad_f.isnan().any(1), hit)
        assert not grad_w.isfinite().all() and clean.isfinite().all()  # never a silent number
        assert path(f, w, y, sigma=10.0).isnan()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_prototype(self, path, dtype, classes, centres, value):
        f, w, y = Sample(67, classes, centres, 5).inputs(dtype)
        w[1, -1, 2] = value
        for keywords in ({}, {"diversity_weight": 0.0}, {"gamma": 0.0, "margin": -2.0}):
            assert path(f, w, y, sigma=10.0, reduction="none", **keywords).isnan().all()

    def test_an_ignored_row(self, path, dtype, classes, centres):
        f, w, y = Sample(67, classes, centres, 5).inputs(dtype)
        hole = torch.arange(67) % 5 == 2
        y[hole] = -100
        expected = value_and_grads(path, f, w, y, sigma=10.0)
        for value in (math.nan, math.inf):
            f[hole] = value
            got = value_and_grads(path, f, w, y, sigma=10.0)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_an_ignored_row_beside_such_a_prototype(self, path, dtype, classes, centres, value):
        f, w, y = Sample(67, classes, centres, 5).inputs(dtype)
        hole = torch.arange(67) % 5 == 2
        y[hole] = -100
        w[1, -1, 2] = value
        rows, grad_f, _ = value_and_grads(
            path, f, w, y, torch.ones(67).to(dtype), sigma=10.0, reduction="none"
        )
        assert (rows[hole] == 0.0).all() and (grad_f[hole] == 0.0).all()
        assert rows[~hole].isnan().all() and grad_f[~hole].isnan().any(1).all()

    def test_overflow_of_finite_features(self, path, dtype, classes, centres):
        # A distance beyond the dtype's range is merely far: affinity 0, hinges at the margin.
        f, w, y = Sample(67, classes, centres, 5).inputs(dtype)
        f *= 1e25 if dtype == F32 else 1e200
        keywords = {"sigma": 10.0, "diversity_weight": 0.0, "reduction": "none"}
        rows, *grads = value_and_grads(path, f, w, y, torch.ones(67).to(dtype), **keywords)
        margins = torch.full((67,), 0.1 * (classes - 1), dtype=dtype)
        assert relative_error(rows, margins) < TOLERANCE[dtype]
        assert all((g == 0.0).all() for g in grads)

    def test_one_feature_that_overflows_alone(self, path, dtype, classes, centres):
        # The other rows keep every digit.
        f, w, y = Sample(67, classes, centres, 5).inputs(dtype)
        keywords = {"sigma": 10.0, "reduction": "none"}
        upstream = torch.ones(67).to(dtype)
        before = value_and_grads(path, f, w, y, upstream, **keywords)
        f[13] = 1e25 if dtype == F32 else 1e200
        rows, grad_f, _ = value_and_grads(path, f, w, y, upstream, **keywords)
        others = torch.arange(67) != 13
        assert relative_error(rows[others], before[0][others]) < TOLERANCE[dtype]
        assert relative_error(grad_f[others], before[1][others]) < TOLERANCE[dtype]
        assert rows[13].isfinite() and (grad_f[13] == 0.0).all()

    def test_overflow_of_finite_prototypes(self, path, dtype, classes, centres):
        # All centres but class 0's are out of reach.
        f, w, y = Sample(67, classes, centres, 5).inputs(dtype)
        w[1:] *= 1e25 if dtype == F32 else 1e200
        keywords = {"sigma": 10.0, "diversity_weight": 0.0, "reduction": "none"}
        y = torch.zeros_like(y)
        rows, *grads = value_and_grads(path, f, w, y, torch.ones(67).to(dtype), **keywords)
        expected = cfal.reference.cfal_loss(f, w, y, **keywords)
        assert relative_error(rows, expected) < TOLERANCE[dtype]
        assert all(g.isfinite().all() for g in grads)
