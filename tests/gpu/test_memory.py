"""Peak memory beyond inputs and gradients: no [B, C] for many prototypes, coefficients for few."""

from __future__ import annotations

import pytest
import torch
from on_device import BF16, F32, every_kernel, needs_cuda, step

from support_kernels import Sample

pytestmark = [pytest.mark.gpu, needs_cuda]


def extra_bytes(path, rows: int, classes: int, dim: int, dtype) -> int:
    """Highest number of bytes held in a step, less what was there before and the gradients."""
    draw = torch.Generator("cuda").manual_seed(0)
    f = torch.randn(rows, dim, device="cuda", generator=draw).to(dtype).requires_grad_()
    w = torch.randn(classes, dim, device="cuda", generator=draw).to(dtype).requires_grad_()
    y = torch.randint(classes, (rows,), device="cuda", generator=draw)
    keywords = {"sigma": 2.0 * dim}
    step(path, f, w, y, **keywords)  # compiles, and takes what libraries keep
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _, *grads = step(path, f, w, y, **keywords)
    peak = torch.cuda.max_memory_allocated()
    return peak - before - sum(g.numel() * g.element_size() for g in grads)


@every_kernel
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
def test_many_prototypes_stay_under_a_quarter_of_the_affinities(path, dtype):
    if path.most_centres is not None:
        pytest.skip("the budget is that of the kernels for many prototypes")
    rows, classes, dim = 16384, 8142, 256
    # Affinities in float32, and per row and prototype the numbers of the definition.
    assert extra_bytes(path, rows, classes, dim, dtype) < rows * classes * 4 / 4


@every_kernel
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
def test_few_prototypes_take_coefficients(path, dtype):
    if path.most_centres is None:
        pytest.skip("the budget is that of the kernels for few prototypes")
    rows, classes, dim = 65536, 9, 512
    # Coefficients [B + K, K + 1] and the loss per row in float32; never another [B, D].
    assert extra_bytes(path, rows, classes, dim, dtype) < 2 * 4 * (rows + classes) * (classes + 2)


@every_kernel
def test_nothing_is_kept_from_call_to_call(path):
    sample = Sample(257, 9 if path.most_centres is not None else 150, dim=72)
    f, w, y = (x.cuda() for x in sample.inputs(F32))
    f, w = f.requires_grad_(), w.requires_grad_()

    def held() -> int:
        step(path, f, w, y)
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    held()
    before = held()
    assert [held() for _ in range(10)] == [before] * 10
