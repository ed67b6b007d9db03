"""What the loss must not notice: place, rotation, joint scale, class names, order of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from support import relative_error
from support_kernels import F64, Sample, every_path, value_and_grads

checked = settings(
    max_examples=20, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)  # fmt: skip

#: Scaled by a power of two or permuted, float64 loses nothing; rotated or moved, it rounds anew.
ROUNDED = 1e-11

samples = st.builds(
    Sample,
    rows=st.integers(1, 40),
    classes=st.integers(1, 90),
    centres=st.integers(1, 3),
    dim=st.integers(1, 24),
    distance=st.sampled_from([0.1, 1.0, 2.0]),
    seed=st.integers(0, 2**16),
)


def run(path, sample, f, w, y, upstream=None, **changes):
    assume(path.takes(sample.classes * sample.centres))
    upstream = sample.upstream() if upstream is None else upstream
    keywords = {**sample.keywords, **changes, "reduction": "none"}
    return value_and_grads(path, f, w, y, upstream, **keywords)


def assert_same(got, expected, tolerance):
    for name, a, b in zip(("loss", "grad_f", "grad_w"), got, expected, strict=True):
        assert relative_error(a, b) < tolerance, name


@every_path
class TestInvariance:
    @checked
    @given(sample=samples, reach=st.floats(-50.0, 50.0))
    def test_translation(self, path, sample, reach):
        f, w, y = sample.inputs()
        step = reach * torch.linspace(-1.0, 2.0, sample.dim, dtype=F64)
        # Multiples of 2^-20 move without rounding; the features' own bits are cut to match.
        f, w, step = ((x * 2.0**20).round() / 2.0**20 for x in (f, w, step))
        assert_same(run(path, sample, f + step, w + step, y), run(path, sample, f, w, y), ROUNDED)

    @checked
    @given(sample=samples)
    def test_rotation(self, path, sample):
        f, w, y = sample.inputs()
        draw = torch.Generator().manual_seed(sample.seed)
        turn = torch.linalg.qr(
            torch.randn(sample.dim, sample.dim, generator=draw, dtype=F64)
        ).Q  # fmt: skip
        loss, grad_f, grad_w = run(path, sample, f, w, y)
        expected = loss, grad_f @ turn, grad_w @ turn
        assert_same(run(path, sample, f @ turn, w @ turn, y), expected, ROUNDED)

    @checked
    @given(sample=samples, power=st.integers(-12, 12))
    def test_joint_scale(self, path, sample, power):
        # f, w -> c f, c w with sigma -> c^2 sigma: a unchanged, R times c^4.
        f, w, y = sample.inputs()
        c, sigma, rho = 2.0**power, sample.keywords["sigma"], sample.keywords["diversity_weight"]
        loss, grad_f, grad_w = run(path, sample, f, w, y)
        scaled = run(
            path, sample, c * f, c * w, y,
            sigma=c**2 * sigma, diversity_weight=c**-4 * rho,
        )  # fmt: skip
        assert_same(scaled, (loss, grad_f / c, grad_w / c), 1e-13)

    @checked
    @given(sample=samples)
    def test_names_of_classes(self, path, sample):
        f, w, y = sample.inputs()
        order = torch.randperm(sample.classes, generator=torch.Generator().manual_seed(sample.seed))
        weights = sample.keywords["class_weights"]
        loss, grad_f, grad_w = run(path, sample, f, w, y)
        renamed = run(path, sample, f, w[order], order.argsort()[y], class_weights=weights[order])
        assert_same(renamed, (loss, grad_f, grad_w[order]), ROUNDED)

    @checked
    @given(sample=samples)
    def test_order_of_rows(self, path, sample):
        f, w, y = sample.inputs()
        order = torch.randperm(sample.rows, generator=torch.Generator().manual_seed(sample.seed))
        loss, grad_f, grad_w = run(path, sample, f, w, y)
        shuffled = run(path, sample, f[order], w, y[order], sample.upstream()[order])
        assert_same(shuffled, (loss[order], grad_f[order], grad_w), ROUNDED)

    @checked
    @given(sample=samples)
    def test_reductions_agree(self, path, sample):
        f, w, y = sample.inputs()
        rows, *of_sum = run(path, sample, f, w, y, torch.ones(sample.rows, dtype=F64))
        for reduction, share in (("sum", 1.0), ("mean", 1.0 / sample.rows)):
            keywords = {**sample.keywords, "reduction": reduction}
            got = value_and_grads(path, f, w, y, **keywords)
            assert_same(got, (share * rows.sum(), *(share * g for g in of_sum)), 1e-12)

    @checked
    @given(sample=samples)
    def test_gradient_of_translation_is_zero(self, path, sample):
        # Moving everything changes nothing, so the gradients of f and w sum to 0.
        f, w, y = sample.inputs()
        _, grad_f, grad_w = run(path, sample, f, w, y)
        residue = grad_f.sum(0) + grad_w.sum((0, 1))
        assert residue.abs().max() <= 1e-12 * (grad_f.abs().sum() + grad_w.abs().sum())


@every_path
@pytest.mark.parametrize("classes", [7, 80])
def test_weights_scale_rows(path, classes):
    sample = Sample(30, classes, 2, 6)
    f, w, y = sample.inputs()
    weights = sample.keywords["class_weights"].double()
    plain = path(f, w, y, sigma=12.0, reduction="none")
    weighted = path(f, w, y, sigma=12.0, reduction="none", class_weights=weights)
    assert relative_error(weighted, weights[y] * plain) < 1e-14
    doubled = path(f, w, y, sigma=12.0, reduction="none", diversity_weight=2.0)
    without = path(f, w, y, sigma=12.0, reduction="none", diversity_weight=0.0)
    assert relative_error(doubled - plain, plain - without) < 1e-12
