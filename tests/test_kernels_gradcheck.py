"""The hand-written backward as autograd sees it: derivatives, subsets of inputs, repeated calls."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from support import problem, relative_error
from support_kernels import every_kernel, every_path, value_and_grads

F64 = torch.float64

#: K above and below D, one and more centres; a few rows leave a class without samples.
SIZES = {
    "K-below-D": {"rows": 5, "classes": 4, "dim": 6},
    "K-above-D": {"rows": 5, "classes": 7, "dim": 2},
    "centres": {"rows": 6, "classes": 3, "centres": 3, "dim": 4},
}
every_size = pytest.mark.parametrize("size", SIZES)


@every_size
@every_path
class TestGradcheck:
    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
    def test_rows(self, path, size, gamma):
        f, w, y = problem(**SIZES[size])
        weights = torch.linspace(0.5, 1.5, w.shape[0])

        def rows(f, w):
            return path(
                f, w, y, sigma=10.0, gamma=gamma, class_weights=weights, reduction="none"
            )  # fmt: skip

        assert gradcheck(rows, (f, w))

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_reductions_and_ignored_rows(self, path, size, reduction):
        f, w, y = problem(**SIZES[size])
        y[1] = -100
        assert gradcheck(lambda f, w: path(f, w, y, sigma=10.0, reduction=reduction), (f, w))

    def test_without_diversity(self, path, size):
        f, w, y = problem(**SIZES[size])
        assert gradcheck(lambda f, w: path(f, w, y, sigma=10.0, diversity_weight=0.0), (f, w))

    def test_diversity_weighted(self, path, size):
        f, w, y = problem(**SIZES[size])
        assert gradcheck(lambda f, w: path(f, w, y, sigma=10.0, diversity_weight=-0.3), (f, w))

    @pytest.mark.parametrize("of", ["features", "prototypes"])
    def test_one_input_alone(self, path, size, of):
        f, w, y = problem(**SIZES[size])
        if of == "features":
            assert gradcheck(lambda f: path(f, w.detach(), y, sigma=10.0), (f,))
        else:
            assert gradcheck(lambda w: path(f.detach(), w, y, sigma=10.0), (w,))


@every_size
@every_path
def test_detached_factor_is_a_constant(path, size):
    f, w, y = problem(**SIZES[size])
    _, *got = value_and_grads(path, f, w, y, sigma=10.0, detach_focal=True, reduction="sum")
    # (1 - s)^2 without a gradient times the affinity loss, whose own gradient gradcheck has passed
    with torch.no_grad():
        keywords = {"sigma": 10.0, "reduction": "none"}
        factor = path(f, w, y, **keywords) / path(f, w, y, gamma=0.0, **keywords)
    _, *expected = value_and_grads(path, f, w, y, factor, gamma=0.0, **keywords)
    for a, b in zip(got, expected, strict=True):
        assert relative_error(a, b) < 1e-13


@every_size
@every_path
class TestRequiresGrad:
    def test_each_subset_gives_the_same_gradients(self, path, size):
        f, w, y = problem(**SIZES[size])
        _, *both = value_and_grads(path, f, w, y, sigma=10.0)
        (alone,) = torch.autograd.grad(path(f, w.detach(), y, sigma=10.0), f)
        assert torch.equal(alone, both[0])
        (alone,) = torch.autograd.grad(path(f.detach(), w, y, sigma=10.0), w)
        assert torch.equal(alone, both[1])

    def test_nothing_requires_grad(self, path, size):
        f, w, y = problem(**SIZES[size])
        with_grad = path(f, w, y, sigma=10.0)
        loss = path(f.detach(), w.detach(), y, sigma=10.0)
        assert not loss.requires_grad and torch.equal(loss, with_grad)
        with torch.no_grad():
            assert torch.equal(path(f, w, y, sigma=10.0), with_grad)
        with torch.inference_mode():
            assert torch.equal(path(f, w, y, sigma=10.0), with_grad)


@every_size
@every_path
class TestUpstream:
    def test_non_unit(self, path, size):
        f, w, y = problem(**SIZES[size])
        _, *unit = value_and_grads(path, f, w, y, sigma=10.0)
        upstream = torch.tensor(-3.0, dtype=F64)
        _, *scaled = value_and_grads(path, f, w, y, upstream, sigma=10.0)
        for a, b in zip(scaled, unit, strict=True):
            assert relative_error(a, -3.0 * b) < 1e-14

    def test_per_sample(self, path, size):
        # Row by row through the sum: linear in the upstream gradient.
        f, w, y = problem(**SIZES[size])
        upstream = torch.linspace(-2.0, 1.0, len(y), dtype=F64)
        _, *got = value_and_grads(path, f, w, y, upstream, sigma=10.0, reduction="none")
        expected = [torch.zeros_like(f), torch.zeros_like(w)]
        for i, g in enumerate(upstream):
            keywords = {"sigma": 10.0, "reduction": "sum"}
            _, grad_f, grad_w = value_and_grads(path, f[i : i + 1], w, y[i : i + 1], **keywords)
            expected[0][i] = g * grad_f[0]
            expected[1] += g * grad_w
        for a, b in zip(got, expected, strict=True):
            assert relative_error(a, b) < 1e-13

    @pytest.mark.parametrize("layout", ["strided", "expanded", "offset"])
    def test_layout(self, path, size, layout):
        f, w, y = problem(**SIZES[size])
        values = torch.linspace(-2.0, 1.0, len(y), dtype=F64)
        if layout == "strided":
            upstream = torch.stack((values, torch.full_like(values, 7.0)), 1)[:, 0]
        elif layout == "expanded":
            upstream = values[:1].expand(len(y))
        else:
            upstream = torch.cat((torch.full((1,), 7.0, dtype=F64), values))[1:]
        assert upstream.stride(0) == {"strided": 2, "expanded": 0, "offset": 1}[layout]
        _, *got = value_and_grads(path, f, w, y, upstream, sigma=10.0, reduction="none")
        plain = upstream.contiguous().clone()
        _, *expected = value_and_grads(path, f, w, y, plain, sigma=10.0, reduction="none")
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])

    def test_sum_of_rows_expands_its_gradient(self, path, size):
        f, w, y = problem(**SIZES[size])
        rows = path(f, w, y, sigma=10.0, reduction="none")
        got = torch.autograd.grad(rows.sum(), (f, w))
        _, *expected = value_and_grads(path, f, w, y, sigma=10.0, reduction="sum")
        for a, b in zip(got, expected, strict=True):
            assert relative_error(a, b) < 1e-14


@every_size
@every_path
def test_backward_can_be_repeated(path, size):
    f, w, y = problem(**SIZES[size])
    loss = path(f, w, y, sigma=10.0)
    first = torch.autograd.grad(loss, (f, w), retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.mul_(5.0)  # what a caller does to its gradients must not reach what the backward reads
    second = torch.autograd.grad(loss, (f, w), 2.0 * torch.ones_like(loss), retain_graph=True)
    third = torch.autograd.grad(loss, (f, w))
    for a, b, c in zip(kept, second, third, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(2.0 * a, b)


@every_path
def test_gradients_accumulate_in_leaves(path):
    f, w, y = problem(**SIZES["K-below-D"])
    _, *expected = value_and_grads(path, f, w, y, sigma=10.0)
    loss = path(f, w, y, sigma=10.0)
    loss.backward(retain_graph=True)
    loss.backward()
    for leaf, grad in zip((f, w), expected, strict=True):
        assert torch.equal(leaf.grad, 2.0 * grad)


@every_kernel
def test_inputs_changed_between_forward_and_backward_are_an_error(path):
    f, w, y = problem(**SIZES["K-below-D"])
    if path.device != "cpu":
        pytest.skip("the graph holds the copy on the device; tests/gpu changes that one")
    base = f.detach().clone().requires_grad_()
    moved = base * 1.0
    loss = path(moved, w, y, sigma=10.0)
    moved.detach().add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_kernel
class TestDoubleBackward:
    @pytest.mark.parametrize("of", [0, 1])
    def test_of_a_gradient_is_a_clear_error(self, path, of):
        f, w, y = problem(**SIZES["K-below-D"])
        loss = path(f, w, y, sigma=10.0)
        grads = torch.autograd.grad(loss, (f, w), create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative.*backend='reference'"):
            grads[of].square().sum().backward()

    def test_of_the_upstream_gradient_is_a_clear_error(self, path):
        f, w, y = problem(**SIZES["K-below-D"])
        upstream = torch.ones(len(y), dtype=F64, requires_grad=True)
        loss = path(f, w, y, sigma=10.0, reduction="none")
        (grad,) = torch.autograd.grad(loss, f, upstream, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(grad.sum(), upstream)

    def test_create_graph_alone_gives_the_gradient(self, path):
        f, w, y = problem(**SIZES["K-below-D"])
        _, *expected = value_and_grads(path, f, w, y, sigma=10.0)
        got = torch.autograd.grad(path(f, w, y, sigma=10.0), (f, w), create_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
