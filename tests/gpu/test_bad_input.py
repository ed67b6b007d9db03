"""Bad input on the device: errors before anything runs, and targets that only kernels can see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from on_device import DEVICE, F32, every_kernel, needs_cuda, on_device, same_bits, sample_for, step

import cfal_kernels as cfal
from support_kernels import same_package

pytestmark = pytest.mark.gpu


@every_kernel
class TestErrorsOfPython:
    def call(self, path, f=None, w=None, y=None, **keywords):
        features, prototypes, target, _ = on_device(sample_for(path, 7, 5), F32)
        return cfal.cfal_loss(
            features if f is None else f,
            prototypes if w is None else w,
            target if y is None else y,
            backend=path.backend,
            **keywords,
        )

    def test_shapes(self, path):
        with pytest.raises(ValueError, match=r"features \[7, 6\] with D = 6 and prototypes"):
            self.call(path, f=torch.zeros(7, 6, device=DEVICE))
        with pytest.raises(ValueError, match=r"target .* 6 targets for 7 rows"):
            self.call(path, y=torch.zeros(6, dtype=torch.int64, device=DEVICE))

    def test_types(self, path):
        with pytest.raises(TypeError, match="features must be float16.*torch.int64"):
            self.call(path, f=torch.zeros(7, 5, device=DEVICE).long())
        with pytest.raises(TypeError, match=r"target .*float32.*target.long\(\)"):
            self.call(path, y=torch.zeros(7, device=DEVICE))

    def test_values(self, path):
        with pytest.raises(ValueError, match="sigma must be > 0"):
            self.call(path, sigma=0.0)
        with pytest.raises(ValueError, match="gamma must be"):
            self.call(path, gamma=-1.0)

    @needs_cuda
    def test_devices(self, path):
        with pytest.raises(ValueError, match="features on cuda:0 and target on cpu"):
            self.call(path, y=torch.zeros(7, dtype=torch.int64))
        with pytest.raises(ValueError, match="features on cpu and prototypes on cuda:0"):
            self.call(path, f=torch.zeros(7, 5))
        with pytest.raises(RuntimeError, match="cannot serve this call"):
            on_cpu = torch.zeros(7, 5), torch.zeros(3, 5), torch.zeros(7, dtype=torch.int64)
            cfal.cfal_loss(*on_cpu, backend=path.backend)


@every_kernel
@pytest.mark.parametrize("index", [-100, -1, 255, 2**31 - 1, 2**40])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_any_ignore_index(path, index, dtype):
    if dtype == torch.int32 and index >= 2**31:
        pytest.skip("int32 targets cannot hold it")
    f, w, y, keywords = on_device(sample_for(path), F32)
    hole = torch.arange(len(y), device=DEVICE) % 3 == 1
    y = torch.where(hole, index, y).to(dtype)
    rows, grad_f, _ = step(path, f, w, y, reduction="none", ignore_index=index, **keywords)
    assert (rows[hole] == 0.0).all() and (grad_f[hole] == 0.0).all()
    kept = step(path, f[~hole].detach().requires_grad_(), w, y[~hole], **keywords, reduction="none")
    torch.testing.assert_close(rows[~hole], kept[0], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(grad_f[~hole], kept[1], rtol=1e-5, atol=1e-7)


OUT_OF_RANGE = """
import sys
import torch
sys.path.insert(0, sys.argv[3])
import cfal_kernels as cfal
from support import forced_regime

backend, device, regime, value, stage = sys.argv[1:3] + sys.argv[4:7]
regime, value = int(regime), int(value)
classes = 9 if regime == 0 else 150
arena = torch.full((1 << 20,), 7.0, device=device)  # everything lies side by side in one block
f = arena[1000:1000 + 33 * 40].view(33, 40).normal_().requires_grad_()
w = torch.randn(classes, 1, 40, device=device, requires_grad=True)
y = torch.arange(33, device=device) % classes
with forced_regime(regime):
    loss = cfal.cfal_loss(f, w, y, sigma=80.0, backend=backend)
    if stage == "forward":
        y[5] = value
        loss = cfal.cfal_loss(f, w, y, sigma=80.0, backend=backend)
    else:  # between the passes: autograd's own check is passed by, as by a kernel of another stream
        y.data[5] = value
    loss.backward()
print("loss", loss.item())
edges = torch.cat((arena[:1000], arena[1000 + 33 * 40:]))
print("untouched", bool((edges == 7.0).all()))
"""


def outcome(path, value: int, stage: str) -> subprocess.CompletedProcess:
    tests = str(Path(__file__).parents[1])
    arguments = [path.backend, path.device, tests, str(path.regime), str(value), stage]
    return subprocess.run(
        [sys.executable, "-c", OUT_OF_RANGE, *arguments],
        capture_output=True, text=True, timeout=140, env=same_package(CUDA_LAUNCH_BLOCKING="0"),
    )  # fmt: skip


@every_kernel
class TestTargetsOutOfRange:
    def test_a_class_is_no_error(self, path):
        done = outcome(path, 3, "forward")
        assert done.returncode == 0, done.stderr[-2000:]
        assert "untouched True" in done.stdout

    @pytest.mark.parametrize("value", [-1, 100000, 2**40])
    def test_the_forward_fails(self, path, value):
        """As in torch's cross_entropy: the process gets an error and no loss."""
        done = outcome(path, value, "forward")
        assert done.returncode != 0 and "loss" not in done.stdout, done.stdout
        assert "rror" in done.stderr

    def test_the_backward_never_writes_elsewhere(self, path):
        """Targets changed in between are an error, or harmless; never a write out of bounds."""
        done = outcome(path, 100000, "backward")
        if done.returncode == 0:
            assert "untouched True" in done.stdout
        else:
            assert "illegal memory access" not in done.stderr


@every_kernel
def test_inputs_changed_between_forward_and_backward_are_an_error(path):
    f, w, y, keywords = on_device(sample_for(path), F32)
    between = f * 1.0
    loss = path(between, w, y, **keywords)
    between.detach().add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_kernel
def test_an_error_leaves_nothing_behind(path):
    f, w, y, keywords = on_device(sample_for(path), F32)
    expected = step(path, f, w, y, **keywords)
    with pytest.raises(ValueError):
        path(f, w, y, **keywords | {"sigma": -1.0})
    assert same_bits(step(path, f, w, y, **keywords), expected)
