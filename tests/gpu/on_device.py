"""What the device gates share. Importing it skips the importing file where no gates were asked for.

A dry run sends everything to kernels on the CPU, its own (CFAL_GATES_OF=dry) or interpreted ones
(triton-interpreted): it shows that a gate is sound, not that a GPU passes it.
"""

from __future__ import annotations

import pytest
import torch

import cfal_kernels as cfal
from cfal_kernels import ops
from support_kernels import GATES_OF, KERNELS, Sample, Variant

if not GATES_OF:
    pytest.skip("needs a GPU: make gpu runs it", allow_module_level=True)

DEVICE = KERNELS[0].device
DRY = DEVICE == "cpu"
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (F32, F64, F16, BF16)

needs_cuda = pytest.mark.skipif(DRY, reason="CFAL_GATES_OF=dry: the CPU stands in for the GPU")
every_kernel = pytest.mark.parametrize("path", KERNELS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64", "f16", "bf16"])


def sample_for(path: Variant, rows: int = 133, dim: int = 72, **changes) -> Sample:
    """A sample with as many classes as suit the kernels: 9 or 150."""
    few = path.most_centres is not None
    return Sample(rows, 9 if few else 150, dim=dim, **changes)


def on_device(sample: Sample, dtype: torch.dtype, device: str | torch.device = DEVICE):
    """Features and prototypes that require grad, targets, and the sample's keywords."""
    f, w, y = sample.inputs(dtype)
    keywords = dict(sample.keywords)
    keywords["class_weights"] = keywords["class_weights"].to(device)
    return f.to(device).requires_grad_(), w.to(device).requires_grad_(), y.to(device), keywords


def step(path, f, w, y, **keywords) -> tuple[torch.Tensor, ...]:
    """Loss and both gradients."""
    loss = path(f, w, y, **keywords)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (f, w))


def same_bits(a, b) -> bool:
    """Equal, NaN included."""
    return all(torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) for x, y in zip(a, b, strict=True))


def operators_of(path: Variant) -> ops.Operators:
    """The pair of torch operators behind `path`."""
    if path.backend != "triton":
        return ops.compiled
    from cfal_kernels.triton import operators

    return operators.OPERATORS


def eager(f, w, y, **keywords) -> torch.Tensor:
    """The definition, as a `path`."""
    return cfal.reference.cfal_loss(f, w, y, **keywords)
