"""torch.compile around the loss: one full graph, and the same bits as eager calls."""

from __future__ import annotations

import pytest
import torch
from on_device import (
    BF16,
    DEVICE,
    F32,
    F64,
    every_kernel,
    needs_cuda,
    on_device,
    operators_of,
    same_bits,
    sample_for,
    step,
)

import cfal_kernels as cfal
from support import forced_regime

pytestmark = pytest.mark.gpu

MODES = [pytest.param("default"), pytest.param("reduce-overhead", marks=needs_cuda)]


def compiled(function, mode="default", dynamic=False):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, mode=mode, dynamic=dynamic)


@every_kernel
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=["f32", "f64", "bf16"])
def test_equals_eager_again_and_again(path, mode, dtype):
    # sigma, margin and gamma are floats in the graph: they must reach the kernels unchanged.
    keywords = on_device(sample_for(path), dtype)[3] | {"sigma": 150.1, "margin": 0.07}

    def loss(f, w, y):
        return path(f, w, y, **keywords)

    fast = compiled(loss, mode)
    for seed in range(5):
        f, w, y, _ = on_device(sample_for(path, seed=seed), dtype)
        torch.compiler.cudagraph_mark_step_begin()
        got = [x.clone() for x in step(fast, f, w, y)]
        assert same_bits(got, step(loss, f, w, y))


@needs_cuda
@every_kernel
def test_graphs_of_other_functions_in_between(path):
    """Whatever a call keeps must lie where the graphs of others do not write."""
    f, w, y, keywords = on_device(sample_for(path), F32)

    def loss(f, w, y):
        return path(f, w, y, **keywords)

    expected = step(loss, f, w, y)
    fast = compiled(loss, "reduce-overhead")
    other = torch.compile(lambda x: (x.sin() * 3.0).cumsum(0), mode="reduce-overhead")
    for _ in range(4):
        for size in (1 << 10, 1 << 16, 1 << 20):
            x = torch.full((size,), 0.5, device=DEVICE)
            torch.compiler.cudagraph_mark_step_begin()
            other(x)
            got = [g.clone() for g in step(fast, f, w, y)]
            assert same_bits(got, expected)


@every_kernel
@pytest.mark.parametrize("reduction", [0, 1])
def test_opcheck(path, reduction):
    f, w, y, keywords = on_device(sample_for(path, rows=35, dim=24), F32)
    inputs = f.detach(), w.detach(), y, keywords["class_weights"]
    arguments = (*inputs, 48.0, 0.1, 1.5, 0.01, False, reduction, -100, path.regime)
    operators = operators_of(path)
    loss, saved = operators.forward(*arguments, True)
    # Part of what is saved may be scratch that nobody reads: the fourth check, which compares two
    # forwards by value, has nothing to go by.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    outcome = torch.library.opcheck(operators.forward, (*arguments, True), test_utils=tests)
    assert set(outcome.values()) == {"SUCCESS"} and len(outcome) == 3
    upstream = torch.linspace(0.5, 1.5, loss.numel(), device=DEVICE).view(loss.shape)
    backward = (upstream, saved, *arguments, True, True)
    outcome = torch.library.opcheck(operators.backward, backward)
    assert set(outcome.values()) == {"SUCCESS"} and len(outcome) == 4


@every_kernel
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_dynamic_rows(path, reduction):
    keywords = on_device(sample_for(path), F32)[3]

    def loss(f, w, y):
        return path(f, w, y, reduction=reduction, **keywords)

    fast = compiled(loss, dynamic=True)
    for rows in (33, 64, 257, 1000):
        f, w, y, _ = on_device(sample_for(path, rows), F32)
        assert same_bits(step(fast, f, w, y), step(loss, f, w, y))


@every_kernel
@pytest.mark.parametrize("mode", MODES)
def test_training_of_a_model_and_its_loss(path, mode):
    sample = sample_for(path, rows=64, dim=16)
    y = sample.inputs()[2].to(DEVICE)
    x = torch.randn(sample.rows, 12, device=DEVICE)

    def train(wrap) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(12, sample.dim), torch.nn.Tanh()).to(DEVICE)
        loss_fn = cfal.CFALLoss(sample.classes, sample.dim, sigma=32.0, backend=path.backend)
        loss_fn = loss_fn.to(DEVICE)
        parameters = [*model.parameters(), *loss_fn.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=1e-4)
        forward = wrap(lambda x, y: loss_fn(model(x), y))
        losses = []
        for _ in range(6):
            torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            loss = forward(x, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().clone())
        return [torch.stack(losses), *(p.detach() for p in parameters)]

    with forced_regime(path.regime):
        expected = train(lambda function: function)
        got = train(lambda function: compiled(function, mode))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
