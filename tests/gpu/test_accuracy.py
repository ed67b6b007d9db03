"""Larger shapes and every dtype, against the definition in float64 on the same device.

Float32 arithmetic may err at most twice as much as eager code does. Float64 has no larger dtype to
be compared in here: it is held to the gate's bound, and by the CPU's gates to long double.
"""

from __future__ import annotations

import pytest
import torch
from on_device import (
    BF16,
    F16,
    F32,
    F64,
    eager,
    every_dtype,
    every_kernel,
    needs_cuda,
    on_device,
    same_bits,
    sample_for,
    step,
)

from support import relative_error
from support_kernels import TOLERANCE, Sample

pytestmark = pytest.mark.gpu

#: Several blocks and a remainder in every direction.
FEW = {
    "tiny": Sample(1, 2, dim=1),
    "batch": Sample(256, 9, dim=512),
    "wide": Sample(33, 9, dim=4099),
    "three-wide": Sample(2, 3, dim=20000),
    "long": Sample(5003, 5, dim=65),
    "more-rows-than-blocks": Sample(1_100_003, 3, dim=5),
    "centres": Sample(130, 9, 3, dim=200),
    "all-64": Sample(300, 64, dim=129),
    "all-64-narrow": Sample(300, 64, dim=9),
    "centres-narrow": Sample(300, 21, 3, dim=5),
    "near": Sample(257, 9, dim=130, distance=0.05),
    "far": Sample(257, 9, dim=130, distance=3.0),
}
MANY = {
    "tall": Sample(1027, 131, dim=65),
    "square": Sample(515, 517, dim=259),
    "classes": Sample(67, 3001, dim=40),
    "centres": Sample(131, 90, 3, dim=70),
    "near": Sample(515, 517, dim=130, distance=0.05),
    "far": Sample(515, 517, dim=130, distance=3.0),
    "off-origin": Sample(515, 517, dim=130, offset=30.0),
}


@every_dtype
@every_kernel
@pytest.mark.parametrize("name", sorted({*FEW, *MANY}))
def test_at_most_twice_eager(path, dtype, name):
    samples = FEW if path.most_centres is not None else MANY
    if name not in samples:
        pytest.skip("a shape of the other regime")
    sample = samples[name]
    f, w, y, keywords = on_device(sample, dtype)
    keywords["class_weights"] = keywords["class_weights"].double()
    exact = step(eager, *(x.detach().double().requires_grad_() for x in (f, w)), y, **keywords)
    keywords["class_weights"] = keywords["class_weights"].float()
    got = step(path, f, w, y, **keywords)
    # Half inputs are read as they are and computed in float32; only their gradients are rounded.
    wide = F64 if dtype == F64 else F32
    wider = (x.detach().to(wide).requires_grad_() for x in (f, w))
    base = step(eager, *wider, y, **keywords)
    rounding = torch.finfo(dtype).eps / 2 if dtype in (F16, BF16) else 0.0
    noise = 16 * torch.finfo(wide).eps
    assert got[0].dtype == wide and got[1].dtype == got[2].dtype == dtype
    for part, a, b, e in zip(("loss", "grad_f", "grad_w"), got, base, exact, strict=True):
        error, allowed = relative_error(a, e), 2.0 * relative_error(b, e) + noise
        if dtype == F64:
            allowed = TOLERANCE[F64]
        allowed += rounding if part != "loss" else 0.0
        if dtype == F16:  # what falls below the smallest float16 is lost whatever the arithmetic
            lost = torch.finfo(F16).smallest_normal * torch.finfo(F16).eps * e.numel() ** 0.5
            allowed += (lost / e.norm()).item()
        assert error <= allowed, (part, error, allowed)


@needs_cuda
@every_kernel
@pytest.mark.parametrize("strides", [(2**30 + 8, 1), (1, 2**26 + 8)], ids=["rows", "columns"])
def test_strides_beyond_32_bits(path, strides):
    f, w, y, keywords = on_device(sample_for(path, rows=3, dim=40), F16)
    expected = step(path, f, w, y, **keywords)
    memory = torch.empty(5 * 2**29 + 2**20, dtype=F16, device=f.device)
    far = memory.as_strided(f.shape, strides).copy_(f.detach()).requires_grad_()
    assert same_bits(step(path, far, w, y, **keywords), expected)
    classes = len(w)
    apart = (5 * 2**29 // classes // 8 * 8, 0, 1)
    far = memory.as_strided(w.shape, apart).copy_(w.detach()).requires_grad_()
    assert same_bits(step(path, f, far, y, **keywords), expected)
    del memory, far
    torch.cuda.empty_cache()  # other processes use the device beside this one


@every_kernel
def test_reductions(path):
    sample = FEW["batch"] if path.most_centres is not None else MANY["tall"]
    f, w, y, keywords = on_device(sample, F32)
    y[::7] = -100
    rows = path(f, w, y, reduction="none", **keywords).double()
    counted = (y != -100).sum()
    total = path(f, w, y, reduction="sum", **keywords)
    mean = path(f, w, y, reduction="mean", **keywords)
    assert (rows[::7] == 0.0).all()
    assert relative_error(total, rows.sum()) < 1e-6
    assert relative_error(mean, rows.sum() / counted) < 1e-6
