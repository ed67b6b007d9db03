"""Loss and gradients in one pass: the same bits as in two, and when the autograd function takes it.

For few prototypes the forward makes the gradients as well where it may guess the upstream gradient.
"""

from __future__ import annotations

import pytest
import torch

import cfal_kernels as cfal
from cfal_kernels import ops
from support import forced_regime, needs_autograd, problem
from support_kernels import F32, F64, needs_kernels
from test_kernels_determinism import same_bits

pytestmark = needs_kernels

# (rows, classes, centres, dim): one chunk; several, with a rest; rows summed in double in between;
# several tiles of columns; rows or prototypes too long for one pass; no rows.
SHAPES = {
    "small": (7, 9, 1, 13),
    "chunks": (301, 9, 1, 130),
    "long-chunks": (5003, 3, 1, 20),
    "centres": (300, 5, 3, 33),
    "tiles": (130, 40, 1, 700),
    "one-column": (70, 3, 1, 1),
    "long-rows": (70, 9, 1, 1100),
    "long-prototypes": (200, 64, 1, 900),
    "no-rows": (0, 3, 1, 5),
}
MEAN, SUM = 1, 2


def arguments(shape: str, dtype=F32, reduction: int = MEAN, regime: int = 0) -> tuple:
    """Features, prototypes, target, class weights, and what follows them but `save`."""
    rows, classes, centres, dim = SHAPES[shape]
    f, w, y = problem(rows, classes, centres, dim)
    f, w = f.detach().to(dtype), w.detach().to(dtype)
    y[1::5] = -100
    weights = torch.linspace(0.5, 1.5, classes)
    return f, w, y, weights, 2.0 * dim, 0.1, 1.5, 0.7, False, reduction, -100, regime


def at_once(args, upstream, features=True, prototypes=True):
    f, w, y, weights, *parameters = args
    op = torch.ops.cfal.value_and_grad.default
    return op(f, w, y, weights, upstream, *parameters, features, prototypes)


def one_after_the_other(args, upstream, features=True, prototypes=True):
    loss, saved = ops.forward(*args, True)
    grad = torch.tensor(upstream, dtype=loss.dtype)
    return loss, saved, *ops.backward(grad, saved, *args, features, prototypes)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_for_any_number_of_threads(shape, dtype, threads):
    args = arguments(shape, dtype)
    threads(1)
    expected = one_after_the_other(args, 0.75)
    for count in (1, 2, 3, 16):
        threads(count)
        assert same_bits(at_once(args, 0.75), expected), count


@pytest.mark.parametrize("upstream", [0.0, 1.0, -3.0, 65536.0, float("nan"), float("inf")])
@pytest.mark.parametrize("reduction", [MEAN, SUM])
def test_same_bits_for_any_upstream_gradient(upstream, reduction):
    args = arguments("chunks", reduction=reduction)
    assert same_bits(at_once(args, upstream), one_after_the_other(args, upstream))


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", ["chunks", "long-chunks", "long-rows"])
def test_gradients_not_asked_for_are_empty(shape, needs):
    args = arguments(shape)
    got = at_once(args, 1.0, *needs)
    assert same_bits(got, one_after_the_other(args, 1.0, *needs))
    assert [g.numel() > 0 for g in got[2:]] == list(needs)


def test_same_bits_with_rows_that_hold_nan():
    f, *others = arguments("chunks")
    f[::7] = float("nan")  # some of them ignored
    expected = one_after_the_other((f, *others), 1.0)
    assert same_bits(at_once((f, *others), 1.0), expected)
    assert not expected[0].isfinite()


def test_same_bits_for_features_that_lie_apart():
    f, *others = arguments("chunks")
    wide = torch.full((2 * f.shape[0], 3 * f.shape[1]), float("nan"))
    wide[::2, ::3] = f
    got = at_once((wide[::2, ::3], *others), 1.0)
    assert same_bits(got, one_after_the_other((f, *others), 1.0))


@pytest.mark.parametrize("flat", [False, True])
def test_gradients_have_the_shape_of_the_prototypes(flat):
    f, w, *others = arguments("small")
    w = w[:, 0] if flat else w
    got = at_once((f, w, *others), 1.0)
    assert got[3].shape == w.shape
    assert torch.equal(got[3].view(9, 13), one_after_the_other((f, w, *others), 1.0)[3].view(9, 13))


def test_many_prototypes_take_two_passes_with_the_same_bits():
    args = arguments("small", regime=1)
    assert same_bits(at_once(args, 0.5)[2:], one_after_the_other(args, 0.5)[2:])


@pytest.mark.parametrize("shape", SHAPES)
def test_opcheck(shape):
    f, w, y, weights, *parameters = arguments(shape, reduction=SUM)
    inputs = (f, w, y, weights, 0.5, *parameters, True, shape != "tiles")
    outcome = torch.library.opcheck(torch.ops.cfal.value_and_grad.default, inputs)
    assert set(outcome.values()) == {"SUCCESS"}


class Step:
    """A training step on one problem; `operators` are the ones that its last run has called."""

    def __init__(self, seed: int = 0):
        self.f, self.w, self.y = problem(40, 5, 1, 6, dtype=F32, seed=seed)
        self.operators: list[str] = []
        for _ in range(2):  # whatever other losses left in the slot of these prototypes
            self.run()

    def loss(self):
        return cfal.cfal_loss(self.f, self.w, self.y, sigma=10.0, backend="cpu")

    def run(self, scale: float = 1.0, backward=None):
        """Gradients of `scale` times the loss."""
        with torch.autograd.profiler.profile() as profile:
            loss = self.loss()
            if backward is None:
                grads = torch.autograd.grad(loss * scale, (self.f, self.w))
            else:
                grads = backward(loss)
        names = ("cfal::forward", "cfal::backward", "cfal::value_and_grad")
        events = sorted(profile.function_events, key=lambda event: event.time_range.start)
        self.operators = [e.name.removeprefix("cfal::") for e in events if e.name in names]
        return grads

    def expected(self, scale: float = 1.0):
        """The same by the reference."""
        loss = cfal.cfal_loss(self.f, self.w, self.y, sigma=10.0, backend="reference")
        return torch.autograd.grad(loss * scale, (self.f, self.w))


def assert_gradients(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@needs_autograd
class TestWhenItIsTaken:
    def test_in_the_steps_of_a_training(self):
        step = Step()
        for _ in range(3):
            assert_gradients(step.run(), step.expected())
            assert step.operators == ["value_and_grad"]

    def test_a_scale_is_learnt(self):
        step = Step()
        seen = []
        for _ in range(4):
            assert_gradients(step.run(1024.0), step.expected(1024.0))
            seen.append(step.operators)
        two = ["forward", "backward"]
        assert seen == [["value_and_grad", "backward"], two, ["value_and_grad"], ["value_and_grad"]]

    def test_a_scale_that_changes_costs_no_gradient_in_vain_but_the_first(self):
        step = Step()
        seen = []
        for scale in (2.0, 3.0, 4.0, 5.0):
            assert_gradients(step.run(scale), step.expected(scale))
            seen.append(step.operators)
        assert seen == [["value_and_grad", "backward"], *[["forward", "backward"]] * 3]

    def test_forwards_alone_stop_it_and_a_backward_brings_it_back(self):
        step = Step()
        seen = []
        for _ in range(4):
            step.run(backward=lambda loss: None)
            seen.append(step.operators)
        assert seen == [["value_and_grad"]] * 2 + [["forward"]] * 2
        step.run()
        assert step.operators == ["forward", "backward"]
        step.run()
        assert step.operators == ["value_and_grad"]

    def test_a_graph_that_is_kept_computes_each_backward(self):
        step = Step()

        def twice(loss):
            first = torch.autograd.grad(loss, (step.f, step.w), retain_graph=True)
            for grad in first:
                grad.mul_(7.0)  # whoever gets a gradient may change it
            return torch.autograd.grad(loss, (step.f, step.w))

        assert_gradients(step.run(backward=twice), step.expected())
        assert step.operators == ["value_and_grad", "backward"]

    def test_graphs_that_are_always_kept_stop_it(self):
        step = Step()
        seen = []
        for _ in range(3):
            step.run(
                backward=lambda loss: torch.autograd.grad(loss, (step.f, step.w), retain_graph=True)
            )
            seen.append(step.operators)
        assert seen == [["value_and_grad", "backward"], *[["forward", "backward"]] * 2]

    def test_one_gradient_of_the_two(self):
        step = Step()
        grads = step.run(backward=lambda loss: torch.autograd.grad(loss, (step.w,)))
        assert_gradients(grads, step.expected()[1:])
        assert step.operators == ["value_and_grad"]

    def test_accumulated_gradients(self):
        step = Step()
        expected = [2.0 * grad for grad in step.expected()]
        for _ in range(2):
            step.run(backward=lambda loss: loss.backward())
            assert step.operators == ["value_and_grad"]
        assert_gradients((step.f.grad, step.w.grad), expected)

    def test_not_for_a_second_derivative_nor_under_hooks_nor_per_row(self):
        step = Step()
        step.run(backward=lambda loss: torch.autograd.grad(loss, step.f, create_graph=True))
        assert step.operators == ["value_and_grad", "backward"]
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            step.run()
        assert step.operators == ["forward", "backward"]
        step.loss = lambda: cfal.cfal_loss(
            step.f, step.w, step.y, sigma=10.0, backend="cpu", reduction="none"
        ).sum()
        step.run()
        assert step.operators == ["forward", "backward"]

    def test_not_for_many_prototypes(self):
        step = Step()
        with forced_regime(1):
            step.run()
        assert step.operators == ["forward", "backward"]

    def test_not_under_a_dispatch_mode(self):
        step = Step()

        class Mode(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, op, types, args=(), kwargs=None):
                seen.append(str(op))
                return op(*args, **(kwargs or {}))

        seen = []
        with Mode():
            torch.autograd.grad(step.loss(), (step.f, step.w))
        assert "cfal.forward.default" in seen and "cfal.backward.default" in seen

    def test_an_upstream_gradient_with_a_pending_sign(self):
        step = Step()
        minus_one = torch._neg_view(torch.tensor(1.0))
        grads = step.run(
            backward=lambda loss: torch.autograd.grad(loss, (step.f, step.w), minus_one)
        )
        assert_gradients(grads, step.expected(-1.0))
        assert step.operators == ["value_and_grad", "backward"]

    @pytest.mark.parametrize(
        "upstream", [torch.empty(0), torch.ones(2), torch.ones((), dtype=torch.float16)], ids=str
    )
    def test_an_upstream_gradient_that_is_none(self, upstream):
        # autograd itself refuses these; a direct call of the node does not.
        loss = Step().loss()
        with pytest.raises(RuntimeError, match="cfal: grad_loss must"):
            loss.grad_fn(upstream)

    def test_two_losses_in_a_step(self):
        first, second = Step(1), Step(2)
        total = first.loss() + second.loss()
        total.backward()
        assert_gradients((first.f.grad, first.w.grad), first.expected())
        assert_gradients((second.f.grad, second.w.grad), second.expected())


def test_the_gradient_is_handed_over_rather_than_copied():
    """Peak memory counts on it: `.grad` is the memory that the kernel wrote."""
    step = Step()
    addresses = []
    step.f.register_hook(lambda grad: addresses.append(grad.data_ptr()))
    step.loss().backward()
    assert step.f.grad.data_ptr() == addresses[0]
