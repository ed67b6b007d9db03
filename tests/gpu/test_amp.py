"""Mixed precision: autocast around the loss, and a scaler that finds and survives an overflow."""

from __future__ import annotations

import pytest
import torch
from on_device import BF16, DEVICE, F16, F32, every_kernel, on_device, sample_for, step
from on_device import same_bits as same

import cfal_kernels as cfal
from support import forced_regime, relative_error

pytestmark = pytest.mark.gpu


@every_kernel
@pytest.mark.parametrize("dtype", [F16, BF16], ids=["f16", "bf16"])
class TestAutocast:
    def test_float32_inputs_stay_float32(self, path, dtype):
        f, w, y, keywords = on_device(sample_for(path), F32)
        expected = step(path, f, w, y, **keywords)
        with torch.autocast(DEVICE, dtype=dtype):
            assert same(step(path, f, w, y, **keywords), expected)
            loss = path(f, w, y, **keywords)
        assert same(torch.autograd.grad(loss, (f, w)), expected[1:])

    def test_features_of_an_autocast_layer(self, path, dtype):
        sample = sample_for(path)
        _, w, y, keywords = on_device(sample, F32)
        layer = torch.nn.Linear(12, sample.dim, device=DEVICE)
        x = torch.randn(sample.rows, 12, device=DEVICE)
        with torch.autocast(DEVICE, dtype=dtype):
            f = layer(x)
            loss = path(f, w, y, **keywords)
        assert f.dtype == dtype and loss.dtype == F32
        exact = cfal.reference.cfal_loss(f.double(), w.double(), y, **keywords)
        got = torch.autograd.grad(loss, (f, w))
        expected = torch.autograd.grad(exact, (f, w))
        assert relative_error(loss, exact) < 1e-6
        assert got[0].dtype == dtype and got[1].dtype == F32
        assert relative_error(got[1], expected[1]) < 1e-5
        assert relative_error(got[0], expected[0]) < 2 * torch.finfo(dtype).eps


@every_kernel
def test_training_under_a_gradient_scaler(path):
    torch.manual_seed(0)
    classes, dim = (9, 32) if path.most_centres is not None else (100, 32)
    centres = 3.0 * torch.randn(classes, 12, device=DEVICE)
    y = torch.arange(4 * classes, device=DEVICE) % classes
    x = centres[y] + 0.1 * torch.randn(len(y), 12, device=DEVICE)
    model = torch.nn.Linear(12, dim, device=DEVICE)
    loss_fn = cfal.CFALLoss(
        classes, dim, sigma=2.0 * dim, diversity_weight=0.0, backend=path.backend
    )
    loss_fn = loss_fn.to(DEVICE)
    optimizer = torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], lr=0.02)
    # The first scale overflows float16: the scaler must see inf, skip the step and halve.
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**40, growth_interval=1000)
    losses, before = [], [p.detach().clone() for p in model.parameters()]
    with forced_regime(path.regime):
        for number in range(80):
            optimizer.zero_grad()
            with torch.autocast(DEVICE, dtype=F16):
                loss = loss_fn(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.detach())
            if number == 0:
                kept = zip(model.parameters(), before, strict=True)
                assert all(torch.equal(p, b) for p, b in kept)
    losses = torch.stack(losses).cpu()
    assert losses.isfinite().all()
    assert scaler.get_scale() < 2.0**40
    assert losses[-1] < 0.7 * losses[0]
