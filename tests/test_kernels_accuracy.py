"""Error against long double: below the gate's bound, and no worse than eager arithmetic needs.

Bounds are norm-wise relative errors over a whole tensor; where rows differ by orders of magnitude,
each row's gradient is held to the bound by itself.
"""

from __future__ import annotations

from functools import lru_cache

import mpmath
import pytest
import torch

from support import relative_error
from support_kernels import (
    F32,
    F64,
    MANY,
    REFERENCE,
    TOLERANCE,
    Sample,
    assert_accurate,
    assert_close_to,
    errors_against,
    every_dtype,
    every_kernel,
    every_path,
    truth_of,
    value_and_grads,
)
from truth import requires_long_double, truth

pytestmark = requires_long_double

#: K below, at and above D: the diversity term goes by pairs or by moments; one and more centres.
SHAPES = {
    "few-classes": {"rows": 33, "classes": 9, "dim": 40},
    "centres": {"rows": 21, "classes": 6, "centres": 3, "dim": 19},
    "K-above-D": {"rows": 20, "classes": 70, "dim": 17},
    "K-below-D": {"rows": 10, "classes": 70, "dim": 130},
    "centres-above-D": {"rows": 12, "classes": 45, "centres": 3, "dim": 11},
}
every_shape = pytest.mark.parametrize("shape", SHAPES)

#: Largest q / sigma whose affinity float32 arithmetic can give to 1e-5: the exponential multiplies
#: the relative error of q, a few units of 6e-8, by it.
FARTHEST = 45.0


def test_truth_is_the_derivative_of_the_definition():
    """The truth's loss and gradients against 50 digits and numerical differentiation."""
    sample = Sample(rows=3, classes=3, centres=2, dim=2)
    f, w, y = sample.inputs()
    g, omega = sample.upstream(), sample.keywords["class_weights"].double()
    names = ("sigma", "gamma", "diversity_weight")
    sigma, gamma, rho = (mpmath.mpf(sample.keywords[name]) for name in names)

    def rows(f, w):
        def distance(x, z):
            return sum((a - b) ** 2 for a, b in zip(x, z, strict=True))

        centres = [c for group in w for c in group]
        D = [distance(a, b) for i, a in enumerate(centres) for b in centres[:i]]
        mu = mpmath.fsum(D) / len(D)
        R = mpmath.fsum((d - mu) ** 2 for d in D) / len(D)
        for x, own in zip(f, y.tolist(), strict=True):
            a = [mpmath.exp(-min(distance(x, c) for c in group) / sigma) for group in w]
            hinges = [max(mpmath.mpf(0), mpmath.mpf(0.1) + b - a[own]) for b in a]
            hinges[own] = 0
            yield mpmath.mpf(omega[own].item()) * (1 - a[own]) ** gamma * (sum(hinges) + rho * R)

    with mpmath.workdps(50):
        exact = truth(f, w, y, g, **sample.keywords)
        at = [[[mpmath.mpf(v) for v in row] for row in f.tolist()]]
        at.append([[[mpmath.mpf(v) for v in c] for c in group] for group in w.tolist()])
        assert [float(v) for v in rows(*at)] == pytest.approx(exact.loss.tolist(), rel=1e-15)

        def slope(row, column):
            value, step = row[column], mpmath.mpf(10) ** -20
            ends = []
            for row[column] in (value + step, value - step):
                ends.append(sum(a * b for a, b in zip(g.tolist(), rows(*at), strict=True)))
            row[column] = value
            return float((ends[0] - ends[1]) / (2 * step))

        grad_f = [slope(row, d) for row in at[0] for d in range(2)]
        grad_w = [slope(row, d) for group in at[1] for row in group for d in range(2)]
    assert grad_f == pytest.approx(exact.grad_features.flatten().tolist(), rel=1e-14)
    assert grad_w == pytest.approx(exact.grad_prototypes.flatten().tolist(), rel=1e-14)


@lru_cache
def far_rows(shape: str):
    """Inputs whose own affinities fall from 1e-2 to 1e-20, row by row, and their truth.

    Hinges of other classes are open, and R keeps the slope of the focal factor alive.
    """
    sample = Sample(**SHAPES[shape])
    f, w, y = sample.inputs()
    ratio = torch.linspace(4.0, FARTHEST, len(y), dtype=F64)[:, None]  # q / sigma
    direction = torch.nn.functional.normalize(f - w[y, 0], dim=1)
    f = (w[y, 0] + direction * (ratio * sample.keywords["sigma"]).sqrt()).float().double()
    return sample, f, w, y, truth(f, w, y, sample.upstream(), **sample.keywords)


@lru_cache
def unequal_prototypes(shape: str):
    """Inputs with one prototype far out: R is a hundred times the rest of the loss."""
    sample = Sample(**SHAPES[shape])
    f, w, y = sample.inputs()
    w[0] *= 8.0
    return sample, f, w, y, truth(f, w, y, sample.upstream(), **sample.keywords)


@lru_cache
def without_diversity(shape: str, distance: float):
    """A random sample and its truth for rho = 0."""
    sample = Sample(**SHAPES[shape], distance=distance)
    return without_diversity_at(sample, *sample.inputs())


@lru_cache
def near_other_classes(shape: str, noise: float):
    """Rows at prototypes of other classes: f_i - w_j is small beside f_i and w_j.

    sigma is small enough for these pairs to be most of the gradients.
    """
    sample = Sample(**SHAPES[shape], width=1 / 6)
    _, w, y = sample.inputs()
    draw = torch.Generator().manual_seed(1)
    other = (y + 1 + torch.arange(len(y)) % (len(w) - 1)) % len(w)
    f = w[other, -1] + noise * torch.randn(len(y), w.shape[2], generator=draw, dtype=F64)
    return without_diversity_at(sample, f.float().double(), w, y)


@lru_cache
def outlying_prototype(shape: str, factor: float):
    """One prototype so far out that the mean of all is nowhere near the others."""
    sample = Sample(**SHAPES[shape])
    f, w, y = sample.inputs()
    w[0] *= factor
    y[y == 0] = 1
    return without_diversity_at(sample, f, w.float().double(), y)


@lru_cache
def two_groups(shape: str, offset: float):
    """Classes at +offset and at -offset in every direction: no common centre is near to all."""
    sample = Sample(**SHAPES[shape])
    f, w, y = sample.inputs()
    side = offset * (torch.arange(len(w)) % 2 * 2.0 - 1.0).double()
    f, w = f + side[y, None], w + side[:, None, None]
    return without_diversity_at(sample, f.float().double(), w.float().double(), y)


def without_diversity_at(sample, f, w, y):
    keywords = {**sample.keywords, "diversity_weight": 0.0}
    return sample, f, w, y, truth(f, w, y, sample.upstream(), **keywords)


ODD_PLACES = {
    "at-other-prototypes": (near_other_classes, 1e-2),
    "close-at-other-prototypes": (near_other_classes, 1e-4),
    "outlier": (outlying_prototype, 1e4),
    "far-outlier": (outlying_prototype, 1e10),
    "groups": (two_groups, 30.0),
    "far-groups": (two_groups, 1e3),
}
every_odd_place = pytest.mark.parametrize("place", ODD_PLACES)


def run(path, dtype, sample, f, w, y, **changes):
    keywords = {**sample.keywords, **changes, "reduction": "none"}
    return value_and_grads(path, f.to(dtype), w.to(dtype), y, sample.upstream(dtype), **keywords)


@every_dtype
@every_path
@every_shape
class TestBounds:
    @pytest.mark.parametrize("distance", [1e-4, 0.03, 1.0, 3.0])
    def test_near_and_far(self, path, dtype, shape, distance):
        assert_accurate(path, Sample(**SHAPES[shape], distance=distance), dtype)

    @pytest.mark.parametrize("offset", [30.0, 1e4])
    def test_far_from_the_origin(self, path, dtype, shape, offset):
        assert_accurate(path, Sample(**SHAPES[shape], offset=offset), dtype)

    def test_tiny_gradients_of_far_rows(self, path, dtype, shape):
        *inputs, exact = far_rows(shape)
        got = run(path, dtype, *inputs)
        assert_close_to(exact, got, dtype)
        sizes = exact.grad_features.norm(dim=1)
        assert sizes.min() < 1e-6 * sizes.max()
        if path is not REFERENCE:  # whose float32 loses a few more units of q than the kernels
            rows = zip(got[1], exact.grad_features, strict=True)
            assert max(relative_error(a, b) for a, b in rows) < TOLERANCE[dtype]

    def test_prototypes_of_different_size(self, path, dtype, shape):
        *inputs, exact = unequal_prototypes(shape)
        assert_close_to(exact, run(path, dtype, *inputs), dtype)

    @every_odd_place
    def test_gradients_where_differences_are_small(self, path, dtype, shape, place):
        # Nothing but the loss's own terms: with R those of the own class would outweigh them.
        make, how = ODD_PLACES[place]
        *inputs, exact = make(shape, how)
        assert_close_to(exact, run(path, dtype, *inputs, diversity_weight=0.0), dtype)


def assert_at_most_twice_eager(path, dtype, exact, sample, f, w, y, noise=16, **changes):
    """Per tensor; `noise` units in the last place are the handful of roundings on the way."""
    got = errors_against(exact, run(path, dtype, sample, f, w, y, **changes))
    eager = errors_against(exact, run(REFERENCE, dtype, sample, f, w, y, **changes))
    for name, error in got.items():
        assert error <= 2.0 * eager[name] + noise * torch.finfo(dtype).eps, (name, got, eager)


@every_dtype
@every_kernel
@every_shape
class TestAgainstEager:
    @pytest.mark.parametrize(
        "variant", [{}, {"distance": 0.01}, {"distance": 3.0}, {"offset": 100.0}], ids=str
    )
    def test_random(self, path, dtype, shape, variant):
        sample = Sample(**SHAPES[shape], **variant)
        exact, inputs = truth_of(sample), sample.inputs()
        assert_at_most_twice_eager(path, dtype, exact, sample, *inputs)

    @pytest.mark.parametrize("distance", [0.8, 1.2])
    def test_hinges_alone(self, path, dtype, shape, distance):
        # Without R a row whose one open hinge is barely open shows its error whole: in float64 the
        # kernels for many prototypes trust products up to a hundredth of the gate.
        *inputs, exact = without_diversity(shape, distance)
        noise = 64 if dtype == F64 else 16
        assert_at_most_twice_eager(path, dtype, exact, *inputs, noise, diversity_weight=0.0)

    @every_odd_place
    def test_gradients_where_differences_are_small(self, path, dtype, shape, place):
        make, how = ODD_PLACES[place]
        *inputs, exact = make(shape, how)
        noise = 64 if dtype == F64 else 16
        assert_at_most_twice_eager(path, dtype, exact, *inputs, noise, diversity_weight=0.0)

    def test_far_rows(self, path, dtype, shape):
        *inputs, exact = far_rows(shape)
        assert_at_most_twice_eager(path, dtype, exact, *inputs)

    def test_prototypes_of_different_size(self, path, dtype, shape):
        *inputs, exact = unequal_prototypes(shape)
        assert_at_most_twice_eager(path, dtype, exact, *inputs)


@lru_cache
def nearly_equidistant(count: int, dim: int, deviation: float):
    """Prototypes [count, 1, dim] at the corners of a regular simplex, perturbed, and their truth.

    With count > dim + 1 the superfluous ones lie inside. Only R is left of the loss: a margin of -1
    closes every hinge. Also returns mu / sqrt(R), by which D_jk - mu loses digits.
    """
    draw = torch.Generator().manual_seed(0)
    corners = torch.eye(dim + 1, dtype=F64)
    corners -= corners.mean(0)
    corners = corners @ torch.linalg.svd(corners).Vh[:dim].T * dim**0.5  # [dim + 1, dim]
    index = torch.arange(count)
    w = corners[index % (dim + 1)] * torch.where(index > dim, 1 / 3, 1.0)[:, None]
    w = w + deviation * torch.randn(count, dim, generator=draw, dtype=F64)
    w = w[:, None].float().double()
    sample = Sample(rows=3, classes=count, dim=dim)
    f, _, y = sample.inputs()
    exact = truth(f, w, y, torch.ones(3, dtype=F64), margin=-1.0, gamma=0.0)
    distances = torch.pdist(w[:, 0]).square()
    return f, w, y, exact, (distances.mean() / distances.std()).item()


@every_dtype
@every_path
@pytest.mark.parametrize("deviation", [1e-2, 1e-4])
@pytest.mark.parametrize("count,dim", [(9, 8), (9, 32), (70, 69), (70, 90), (70, 65), (70, 20)])
def test_diversity_of_nearly_equidistant_prototypes(path, dtype, count, dim, deviation):
    # What training strives for. The kernels for many prototypes take products in `dtype`, all else
    # is in float64.
    f, w, y, exact, loss_of_digits = nearly_equidistant(count, dim, deviation)
    got = value_and_grads(
        path, f.to(dtype), w.to(dtype), y, torch.ones(3, dtype=dtype),
        margin=-1.0, gamma=0.0, reduction="none",
    )  # fmt: skip
    by_products = path.regime == MANY.regime and count > dim
    eps = torch.finfo(dtype if by_products else F64).eps
    assert_close_to(exact, got, dtype, tolerance=8 * eps * loss_of_digits)


@every_kernel
def test_half_precision_inputs_cost_only_their_own_rounding(path):
    for dtype in (torch.float16, torch.bfloat16):
        sample = Sample(rows=33, classes=9, dim=40)
        f, w, y = sample.inputs(F32)
        f = f.to(dtype)
        g = sample.upstream()
        exact = truth(f, w, y, g, **sample.keywords)
        loss, grad_f, grad_w = value_and_grads(
            path, f, w, y, g.float(), reduction="none", **sample.keywords
        )
        assert grad_f.dtype == dtype and grad_w.dtype == loss.dtype == F32
        assert relative_error(loss, exact.loss) < TOLERANCE[F32]
        assert relative_error(grad_w, exact.grad_prototypes) < TOLERANCE[F32]
        # Rounded once, to nearest, from an accurate float32.
        assert relative_error(grad_f, exact.grad_features) < torch.finfo(dtype).eps / 2
