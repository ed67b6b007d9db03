"""Autocast does not downcast this loss, and half-precision features are read as they are."""

from __future__ import annotations

import pytest
import torch

import cfal_kernels as cfal
from support import problem, relative_error

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
def test_float32_inputs_stay_float32(dtype, backend):
    f, w, y = problem(rows=16, dim=64, dtype=torch.float32)
    plain = cfal.cfal_loss(f, w, y, sigma=128.0, backend=backend)
    expected = torch.autograd.grad(plain, (f, w))
    with torch.autocast("cpu", dtype=dtype):
        loss = cfal.cfal_loss(f, w, y, sigma=128.0, backend=backend)
        inside = torch.autograd.grad(loss, (f, w), retain_graph=True)
    outside = torch.autograd.grad(loss, (f, w))
    assert loss.dtype == torch.float32 and loss == plain
    for got in (inside, outside):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", HALF)
def test_half_features_of_an_autocast_layer(dtype, backend):
    layer = torch.nn.Linear(12, 64)
    loss_fn = cfal.CFALLoss(4, 64, sigma=128.0, backend=backend)
    x, y = torch.randn(16, 12), torch.randint(4, (16,))
    with torch.autocast("cpu", dtype=dtype):
        f = layer(x)
        loss = loss_fn(f, y)
    assert f.dtype == dtype and loss.dtype == torch.float32
    exact = cfal.reference.cfal_loss(f.double(), loss_fn.prototypes.double(), y, sigma=128.0)
    assert relative_error(loss, exact) < 1e-6
    grad_f, grad_w = torch.autograd.grad(loss, (f, loss_fn.prototypes))
    exact_f, exact_w = torch.autograd.grad(exact, (f, loss_fn.prototypes))
    assert grad_f.dtype == dtype and grad_w.dtype == torch.float32
    assert relative_error(grad_w, exact_w) < 1e-5
    assert relative_error(grad_f, exact_f) < torch.finfo(dtype).eps  # one rounding into its dtype


@pytest.mark.parametrize("dtype", HALF)
def test_head_logits_stay_float32(dtype):
    head = cfal.PrototypeHead(64, 4, sigma=128.0)
    f = torch.randn(16, 64, requires_grad=True)
    expected = head(f)
    with torch.autocast("cpu", dtype=dtype):
        logits = head(f)
        (grad,) = torch.autograd.grad(logits.sum(), f)
    assert logits.dtype == torch.float32 and torch.equal(logits, expected)
    assert torch.equal(grad, torch.autograd.grad(expected.sum(), f)[0])


def test_autocast_state_survives(backend):
    f, w, y = problem(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cfal.cfal_loss(f, w, y, backend=backend)
        assert torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
