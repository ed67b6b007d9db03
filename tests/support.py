"""What several test files share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from cfal_kernels import _regime, ops

#: Marks a test of the compiled operators; the reason says why they are absent, with the remedy.
needs_kernels = pytest.mark.skipif(bool(ops.unavailable), reason=ops.unavailable)
#: The same of the autograd function in C++ and its entry.
needs_autograd = pytest.mark.skipif(bool(ops.autograd_unavailable), reason=ops.autograd_unavailable)

#: Every backend of this version that can run on the CPU, as parameters; an absent one is skipped.
BACKENDS = [
    pytest.param("reference"),
    pytest.param("cpu", marks=needs_kernels),
]


def available_backends() -> list[str]:
    """Names of the backends that run here."""
    return ["reference"] if ops.unavailable else ["reference", "cpu"]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected| in the 2-norm over all elements; NaN counts as infinite.

    Where the expected norm is 0, any difference counts as infinite.
    """
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape
    difference = torch.linalg.vector_norm(actual - expected).item()
    if difference == 0.0:
        return 0.0
    norm = torch.linalg.vector_norm(expected).item()
    return difference / norm if norm > 0.0 and difference == difference else float("inf")


class Moved(torch.autograd.Function):
    """A copy on another device with the same strides and offset; gradients travel back likewise."""

    @staticmethod
    def forward(ctx, x, device):
        ctx.origin = x.device
        storage = torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())
        there = storage.to(device, copy=True).untyped_storage()
        empty = torch.empty(0, dtype=x.dtype, device=device)
        return empty.set_(there, x.storage_offset(), x.shape, x.stride())

    @staticmethod
    def backward(ctx, grad):
        return Moved.apply(grad, ctx.origin), None


def moved(x: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """`x` itself if it is on `device`, else a copy there that lies in memory as `x` does."""
    where = torch.device(device)
    there = x.device.type == where.type and where.index in (None, x.device.index)
    return x if there else Moved.apply(x, where)


@contextlib.contextmanager
def forced_regime(regime: int) -> Iterator[None]:
    """Sends every call to the kernels for `_regime.FEW` or `_regime.MANY` prototypes."""
    before = _regime.few_limit
    _regime.few_limit = 2**62 if regime == _regime.FEW else -1
    try:
        yield
    finally:
        _regime.few_limit = before


def problem(
    rows: int = 7,
    classes: int = 4,
    centres: int = 1,
    dim: int = 5,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random features [B, D] and prototypes [C, M, D] that require grad, and targets [B].

    Unit scale: with sigma = 2 D affinities are near 1/e.
    """
    generator = torch.Generator().manual_seed(seed)
    f = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    w = torch.randn(classes, centres, dim, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (rows,), generator=generator)
    return f.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), y
