"""Host time of one small step, layer by layer, where launching costs more than computing.

    python -m pytest benchmarks/test_overhead.py --benchmark-enable

The layers: the bare operators, the autograd function over them, the public function with its
checks, the module; and, for scale, the softmax head. Everything at (B, C, D) = (32, 9, 128).
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cfal_kernels as cfal
from cfal_kernels import _regime, autograd, ops

pytestmark = pytest.mark.skipif(bool(ops.unavailable), reason=ops.unavailable)

B, C, D = 32, 9, 128
SIGMA = 2.0 * D
# sigma, margin, gamma, diversity_weight, detach_focal, reduction "mean", ignore_index, regime
PARAMETERS = (SIGMA, 0.1, 2.0, 1.0, False, 1, -100, _regime.FEW)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tensors(two_threads):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(B, D, generator=generator, requires_grad=True)
    prototypes = torch.randn(C, 1, D, generator=generator, requires_grad=True)
    target = torch.randint(C, (B,), generator=generator)
    weights = torch.rand(C, generator=generator) + 0.5
    return features, prototypes, target, weights


def step(loss_of, *leaves):
    """Zero the gradients, forward, backward; returns the loss, whose gradients must exist."""

    def run():
        for leaf in leaves:
            leaf.grad = None
        loss = loss_of()
        loss.backward()
        return loss

    return run


def test_operators(benchmark, tensors):
    features, prototypes, target, weights = (t.detach() for t in tensors)
    one = torch.ones(())

    def both():
        loss, saved = ops.forward(features, prototypes, target, weights, *PARAMETERS, True)
        ops.backward(one, saved, features, prototypes, target, weights, *PARAMETERS, True, True)
        return loss

    assert benchmark(both).isfinite()


def test_autograd_function(benchmark, tensors):
    features, prototypes, target, weights = tensors
    run = step(
        lambda: autograd.apply(
            features, prototypes, target, weights, PARAMETERS, ops.compiled
        ),
        features, prototypes,
    )  # fmt: skip
    assert benchmark(run).isfinite()
    assert features.grad.shape == (B, D) and prototypes.grad.shape == (C, 1, D)


def test_public_function(benchmark, tensors):
    features, prototypes, target, weights = tensors
    run = step(
        lambda: cfal.cfal_loss(
            features, prototypes, target, class_weights=weights, sigma=SIGMA
        ),
        features, prototypes,
    )  # fmt: skip
    assert benchmark(run).isfinite()


def test_module(benchmark, tensors):
    features, _, target, weights = tensors
    module = cfal.CFALLoss(C, D, sigma=SIGMA, class_weights=weights)
    module._watch = None  # it looks at the first forwards only
    run = step(lambda: module(features, target), features, module.prototypes)
    assert benchmark(run).isfinite()
    assert module.prototypes.grad.shape == (C, 1, D)


def test_softmax_head(benchmark, tensors):
    features, _, target, weights = tensors
    linear, loss = nn.Linear(D, C), nn.CrossEntropyLoss(weight=weights)
    run = step(lambda: loss(linear(features), target), features, linear.weight, linear.bias)
    assert benchmark(run).isfinite()
