"""The authors' own numbers on every implementation, both kernel regimes forced on each vector."""

from __future__ import annotations

import pytest

from oracle import NAMES, load, requires_oracle
from support import relative_error
from support_kernels import every_dtype, every_path, value_and_grads

pytestmark = requires_oracle


@pytest.fixture(params=NAMES)
def case(request):
    return load(request.param)


def check(path, case, dtype, value, gradient, upstream=None, **keywords):
    f, w, y = case.inputs(dtype)
    loss, *grads = value_and_grads(path, f, w, y, upstream, **keywords)
    tolerance = case.tolerance(dtype)
    assert relative_error(loss, case.tensor(value)) < tolerance
    for side, grad in zip("fW", grads, strict=True):
        expected = case.tensor(f"{gradient}_{side}")
        if expected.isfinite().all():  # Keras gives NaN on a prototype
            assert relative_error(grad, expected) < tolerance, side
        else:
            assert grad.isfinite().all()


@every_dtype
@every_path
class TestOracle:
    def test_mean(self, path, case, dtype):
        check(path, case, dtype, "cfal_mean", "grad_cfal_full", **case.keywords(dtype))

    def test_mean_with_the_focal_factor_detached(self, path, case, dtype):
        keywords = {**case.keywords(dtype), "detach_focal": True}
        check(path, case, dtype, "cfal_mean", "grad_cfal_sg", **keywords)

    def test_rows_with_an_upstream_gradient(self, path, case, dtype):
        keywords = {**case.keywords(dtype), "reduction": "none"}
        upstream = case.tensor("grad_out", dtype)
        check(path, case, dtype, "cfal", "grad_cfal_full_none", upstream, **keywords)

    def test_affinity_loss(self, path, case, dtype):
        f, w, y = case.inputs(dtype)
        keywords = {**case.keywords(dtype), "gamma": 0.0, "class_weights": None}
        _, *grads = value_and_grads(path, f, w, y, **keywords)
        for side, grad in zip("fW", grads, strict=True):
            assert relative_error(grad, case.tensor(f"grad_vanilla_{side}")) < case.tolerance(dtype)
        rows = path(f, w, y, reduction="none", **keywords)
        assert relative_error(rows, case.tensor("L_aff")) < case.tolerance(dtype)

    def test_diversity_alone(self, path, case, dtype):
        # A margin of -1 closes every hinge, and with gamma = 0 only R is left.
        loss, _, grad_w = value_and_grads(path, *case.inputs(dtype), margin=-1.0, gamma=0.0)
        assert relative_error(loss, case.tensor("rw")) < case.tolerance(dtype)
        assert relative_error(grad_w, case.tensor("grad_rw_W")) < case.tolerance(dtype)
