"""The operators as torch sees them: opcheck, fakes, and torch.compile without a break."""

from __future__ import annotations

import pytest
import torch

import cfal_kernels as cfal
from cfal_kernels import _regime, ops
from support import forced_regime, problem
from support_kernels import F32, F64, FEW, MANY, Variant, every_kernel, needs_kernels

pytestmark = needs_kernels

#: (regime, rows, classes, centres, dim): pairs and moments, kept and not; rows kept and recomputed.
SHAPES = {
    "few": (_regime.FEW, 7, 4, 1, 5),
    "few-centres": (_regime.FEW, 7, 4, 3, 5),
    "few-two-classes": (_regime.FEW, 7, 2, 1, 5),
    "few-empty-batch": (_regime.FEW, 0, 4, 1, 5),
    "many-pairs": (_regime.MANY, 70, 9, 1, 33),
    "many-moments": (_regime.MANY, 70, 33, 3, 5),
    "many-empty-batch": (_regime.MANY, 0, 33, 1, 5),
    "many-rows-recomputed": (_regime.MANY, 2100, 2100, 1, 2),
    "many-pairs-not-kept": (_regime.MANY, 2, 1030, 1, 1030),
    "many-moments-not-kept": (_regime.MANY, 2, 1030, 1, 1027),
}
#: One at a time away from the defaults: dtypes, layouts, switches.
VARIANTS = (
    "plain",
    "double",
    "half",
    "mixed",
    "strided",
    "int32",
    "none",
    "sum",
    "weights",
    "rho-0",
)


def arguments(shape: str, variant: str = "plain") -> tuple:
    """Arguments of torch.ops.cfal.forward, with everything saved."""
    regime, rows, classes, centres, dim = SHAPES[shape]
    dtypes = {"double": (F64, F64), "half": (torch.bfloat16,) * 2, "mixed": (torch.float16, F32)}
    f_dtype, w_dtype = dtypes.get(variant, (F32, F32))
    f, w, y = problem(rows, classes, centres, dim)
    f, w = f.detach().to(f_dtype), w.detach().to(w_dtype)
    if variant == "strided":
        f, w = f.t().contiguous().t(), torch.stack((w, w), -1)[..., 0]
    if variant == "int32":
        y = y.int()
    y[1::5] = -100
    weights = torch.linspace(0.5, 1.5, classes) if variant == "weights" else None
    # The mean over no rows is NaN, which opcheck finds different from itself.
    reduction = {"none": 0, "sum": 2}.get(variant, 1 if rows > 0 else 2)
    rho = 0.0 if variant == "rho-0" else 1.0
    return f, w, y, weights, 2.0 * dim, 0.1, 2.0, rho, False, reduction, -100, regime, True


def backward_arguments(args: tuple, features: bool = True, prototypes: bool = True) -> tuple:
    loss, saved = ops.forward(*args)
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)
    return (upstream, saved, *args[:-1], features, prototypes)


def check(op, args) -> None:
    outcome = torch.library.opcheck(op, args)
    assert set(outcome.values()) == {"SUCCESS"} and len(outcome) == 4


@pytest.mark.parametrize("shape", SHAPES)
def test_opcheck(shape):
    args = arguments(shape)
    check(ops.forward, args)
    check(ops.backward, backward_arguments(args))


@pytest.mark.parametrize("shape", ["few", "few-centres", "many-pairs", "many-moments"])
@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_opcheck_of_variants(shape, variant):
    args = arguments(shape, variant)
    check(ops.forward, args)
    check(ops.backward, backward_arguments(args))


@pytest.mark.parametrize("shape", SHAPES)
class TestShapesOfResults:
    def test_nothing_is_saved_for_inference(self, shape):
        *args, _ = arguments(shape)
        assert ops.forward(*args, False)[1].numel() == 0
        check(ops.forward, (*args, False))

    @pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
    def test_gradients_not_asked_for_are_empty(self, shape, needs):
        args = arguments(shape)
        f, w, *_ = args
        grads = ops.backward(*backward_arguments(args, *needs))
        for grad, x, need in zip(grads, (f, w), needs, strict=True):
            assert grad.shape == (x.shape if need else (0,)) and grad.dtype == x.dtype

    def test_saved_is_as_long_as_the_fake_says(self, shape):
        f, w, *_ = args = arguments(shape)
        regime = SHAPES[shape][0]
        saved = ops.forward(*args)[1]
        expected = ops.saved_numel(regime, len(f), w.shape[0] * w.shape[1], f.shape[1])
        assert saved.shape == (expected,)

    def test_inputs_are_left_alone(self, shape):
        args = arguments(shape)
        before = [x.clone() for x in args[:3]]
        backward = backward_arguments(args)
        saved = backward[1].clone()
        ops.backward(*backward)
        assert all(torch.equal(a, b) for a, b in zip(args[:3], before, strict=True))
        assert torch.equal(backward[1], saved)  # a second backward reads the same


class TestWhatTheOperatorsRefuse:
    """Direct calls, which no Python check precedes: an error, never a read out of bounds."""

    @pytest.mark.parametrize("shape", ["few", "many-moments"])
    @pytest.mark.parametrize("target", [-1, 99, 2**31 + 1, -(2**62)])
    def test_targets(self, shape, target):
        f, w, y, *rest = arguments(shape)
        y[3] = target
        with pytest.raises(RuntimeError, match=f"target has value {target} at position 3"):
            ops.forward(f, w, y, *rest)

    def test_targets_changed_before_the_backward(self):
        args = backward_arguments(arguments("few"))
        args[4][3] = 99
        with pytest.raises(RuntimeError, match="target has value 99"):
            ops.backward(*args)

    @pytest.mark.parametrize("shape", ["few", "many-moments"])
    def test_a_saved_buffer_of_other_inputs(self, shape):
        upstream, saved, *rest = backward_arguments(arguments(shape))
        for other in (saved[:-1], saved.double(), saved.new_empty(0), saved[None]):
            with pytest.raises(RuntimeError, match="saved does not belong"):
                ops.backward(upstream, other, *rest)

    def test_shapes_and_dtypes(self):
        f, w, y, *rest = arguments("few")
        wrong = (
            (f[:, 1:], w, y), (f[1:], w, y), (f, w[:0], y), (f, w[0, 0], y), (f, w[None], y),
            (f, w[:, 0, 1:], y), (f[0], w, y), (f.long(), w, y), (f, w, y.float()),
            (f, w, y.short()),
        )  # fmt: skip
        for inputs in wrong:
            with pytest.raises(RuntimeError, match="cfal: "):
                ops.forward(*inputs, *rest)


def test_prototypes_of_one_centre_may_go_without_its_dimension():
    args = arguments("few")
    f, w, *rest = args
    assert w.shape[1] == 1
    flat = (f, w[:, 0], *rest)
    for a, b in zip(ops.forward(*args), ops.forward(*flat), strict=True):
        assert torch.equal(a, b)
    want = ops.backward(*backward_arguments(args))
    got = ops.backward(*backward_arguments(flat))
    assert torch.equal(got[0], want[0])
    assert got[1].shape == flat[1].shape and torch.equal(got[1], want[1][:, 0])
    check(ops.forward, flat)
    check(ops.backward, backward_arguments(flat))


def compiled(function, **options):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, **options)


def loss_and_grads(function, f, w, y):
    f, w = f.detach().requires_grad_(), w.detach().requires_grad_()
    loss = function(f, w, y)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (f, w))


def assert_same(got, expected):
    # The same kernels run on the same bits.
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@every_kernel
class TestCompile:
    """aot_eager traces forward and backward as inductor does, without its compiler."""

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    @pytest.mark.parametrize("centres", [1, 2])
    def test_equals_eager(self, path, reduction, centres):
        def loss(f, w, y):
            return path(f, w, y, sigma=10.0, reduction=reduction, ignore_index=2)

        fast = compiled(loss, backend="aot_eager")
        inputs = problem(rows=9, centres=centres, dtype=F32)
        assert_same(loss_and_grads(fast, *inputs), loss_and_grads(loss, *inputs))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, F64])
    def test_dtypes_and_weights(self, path, dtype):
        weights = torch.linspace(0.5, 1.5, 4)

        def loss(f, w, y):
            return path(f, w, y, sigma=10.0, class_weights=weights, detach_focal=True)

        fast = compiled(loss, backend="aot_eager")
        inputs = problem(rows=9, dtype=dtype)
        assert_same(loss_and_grads(fast, *inputs), loss_and_grads(loss, *inputs))

    def test_dynamic_shapes_compile_once(self, path):
        def loss(f, w, y):
            return path(2.0 * f, w, y, sigma=10.0)

        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        fast = compiled(loss, backend=counter, dynamic=True)
        frames = set()
        for rows in (6, 9, 130, 600, 1100):
            inputs = problem(rows=rows, dtype=F32)
            assert_same(loss_and_grads(fast, *inputs), loss_and_grads(loss, *inputs))
            frames.add(counter.frame_count)
        assert len(frames) == 1

    def test_inference(self, path):
        fast = compiled(lambda f, w, y: path(f, w, y, sigma=10.0), backend="aot_eager")
        f, w, y = problem(dtype=F32)
        with torch.no_grad():
            assert torch.equal(fast(f, w, y), path(f, w, y, sigma=10.0))


@pytest.mark.parametrize("path,dynamic", [(FEW, False), (MANY, True)], ids=str)
def test_inductor_in_the_middle_of_a_graph(path, dynamic):
    def loss(f, w, y):
        return (path(f * 0.5, w, y, sigma=10.0, reduction="none") * 2.0).mean()

    fast = compiled(loss, dynamic=dynamic)
    for rows in (9, 12) if dynamic else (9,):
        f, w, y = problem(rows=rows)
        got, expected = loss_and_grads(fast, f, w, y), loss_and_grads(loss, f, w, y)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-16)


def test_dynamic_rows_across_the_budget():
    # What is saved keeps a symbolic length where rows begin to be recomputed, in blocks of any
    # size; inductor checks the length that comes.
    def loss(f, w, y):
        return MANY(f, w, y, sigma=4.0)

    fast = compiled(loss, dynamic=True)
    for rows in (40, 500, 600, 2200):
        inputs = problem(rows=rows, classes=4500, dim=2, dtype=F32)
        assert_same(loss_and_grads(fast, *inputs), loss_and_grads(loss, *inputs))


@pytest.mark.parametrize("path", [FEW, MANY], ids=str)
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"gamma": 0.0, "margin": 0.3}])
def test_module(path: Variant, options):
    module = cfal.CFALLoss(
        5, 8, sigma=10.0, centers_per_class=2, class_counts=[50, 3, 7, 1, 20], **options
    )
    with torch.no_grad():
        module.prototypes.copy_(torch.randn(5, 2, 8))
    features, y = torch.randn(12, 8, requires_grad=True), torch.randint(5, (12,))
    with forced_regime(path.regime):
        leaves = (features, module.prototypes)
        expected = module(features, y)
        fast = compiled(module, backend="aot_eager")
        got = fast(features, y)
        assert torch.equal(got, expected)
        assert_same(torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves))


@pytest.mark.parametrize("path", [FEW, MANY], ids=str)
def test_training_step_of_a_model_and_its_head(path: Variant):
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    loss = cfal.CFALLoss(5, 4, sigma=8.0)
    x, y = torch.randn(12, 6), torch.randint(5, (12,))
    parameters = [*model.parameters(), *loss.parameters()]

    def step(x, y):
        return loss(model(x), y)

    with forced_regime(path.regime):
        fast = compiled(step, backend="aot_eager")
        got = torch.autograd.grad(fast(x, y), parameters)
        expected = torch.autograd.grad(step(x, y), parameters)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
