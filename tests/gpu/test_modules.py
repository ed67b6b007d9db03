"""The modules on the device, and what `auto` does there with and without a recorded pass."""

from __future__ import annotations

import warnings

import pytest
import torch
from on_device import DEVICE, F32, every_kernel, needs_cuda, on_device, same_bits, sample_for, step

import cfal_kernels as cfal
from cfal_kernels import hardware
from support import forced_regime, relative_error
from test_hardware import ENTRY

pytestmark = pytest.mark.gpu


@every_kernel
def test_a_head_and_its_loss_learn(path):
    torch.manual_seed(0)
    classes, dim = (9, 32) if path.most_centres is not None else (100, 32)
    centres = 3.0 * torch.randn(classes, 12, device=DEVICE)
    y = torch.arange(8 * classes, device=DEVICE) % classes
    x = centres[y] + 0.1 * torch.randn(len(y), 12, device=DEVICE)
    backbone, head = torch.nn.Linear(12, dim), cfal.PrototypeHead(dim, classes, sigma=2.0 * dim)
    model = torch.nn.Sequential(backbone, head).to(DEVICE)
    loss_fn = cfal.CFALLoss.from_head(head, backend=path.backend, diversity_weight=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with forced_regime(path.regime):
        for _ in range(150):
            optimizer.zero_grad()
            loss_fn(backbone(x), y).backward()
            optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.9


@every_kernel
def test_module_equals_function(path):
    sample = sample_for(path)
    f, w, y, _ = on_device(sample, F32)
    module = cfal.CFALLoss(sample.classes, sample.dim, sigma=150.0, backend=path.backend)
    module = module.to(DEVICE)
    with torch.no_grad():
        module.prototypes.copy_(w)
    with forced_regime(path.regime):
        loss = module(f, y)
        got = loss.detach(), *torch.autograd.grad(loss, (f, module.prototypes))
    weights = module.class_weights
    assert same_bits(got, step(path, f, w, y, sigma=150.0, class_weights=weights))


@needs_cuda
@every_kernel
class TestAuto:
    def test_takes_a_backend_with_a_pass(self, path, monkeypatch):
        passes = {name: (ENTRY,) if name == path.backend else () for name in hardware.RECORDED}
        monkeypatch.setattr(hardware, "passes", passes)
        f, w, y, keywords = on_device(sample_for(path), F32)
        expected = step(path, f, w, y, **keywords)
        with forced_regime(path.regime):
            assert cfal.explain(f, w).backend == path.backend
            loss = cfal.cfal_loss(f, w, y, **keywords)
        assert torch.equal(loss.detach(), expected[0])

    def test_says_so_without_one(self, path, monkeypatch):
        monkeypatch.setattr(hardware, "passes", {name: () for name in hardware.RECORDED})
        f, w, y, keywords = on_device(sample_for(path), F32)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss = cfal.cfal_loss(f, w, y, **keywords)
        [text] = [str(c.message) for c in caught if issubclass(c.category, cfal.CFALWarning)]
        assert f"{path.backend}: it could serve, but has not passed" in text
        assert relative_error(loss, path(f, w, y, **keywords)) < 1e-5
