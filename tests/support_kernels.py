"""Every implementation of the loss under one call, so that each gate runs on all of them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import cfal_kernels as cfal
from cfal_kernels import _regime
from support import forced_regime, moved, needs_kernels, relative_error
from truth import Truth, truth

F32, F64 = torch.float32, torch.float64

#: Norm-wise relative error that every implementation must stay below, whatever the input.
TOLERANCE = {F64: 1e-12, F32: 1e-5}


@dataclass(frozen=True)
class Variant:
    """One implementation; calls take the arguments of `cfal_kernels.cfal_loss`, less backend.

    `regime` sends the call to the kernels for few or many prototypes, whatever their number; a call
    with more than `most_centres` skips the test. Tensors travel to `device`, the loss and the
    gradients back.
    """

    name: str
    backend: str
    regime: int = _regime.FEW
    device: str = "cpu"
    most_centres: int | None = None

    def __call__(self, features, prototypes, target, **keywords) -> torch.Tensor:
        centres = prototypes.shape[:-1].numel()
        if not self.takes(centres):
            pytest.skip(f"{self.name} is for {self.most_centres} centres at most, not {centres}")
        call = (self._there(x) for x in (features, prototypes, target))
        keywords = {name: self._there(value) for name, value in keywords.items()}
        with forced_regime(self.regime):
            loss = cfal.cfal_loss(*call, backend=self.backend, **keywords)
        return moved(loss, features.device)

    def takes(self, centres: int) -> bool:
        """Whether a call with so many centres can be sent there."""
        return self.most_centres is None or centres <= self.most_centres

    def _there(self, value):
        return moved(value, self.device) if isinstance(value, torch.Tensor) else value

    def __str__(self) -> str:
        return self.name


REFERENCE = Variant("reference", "reference")
FEW = Variant("cpu-few", "cpu", _regime.FEW)
MANY = Variant("cpu-many", "cpu", _regime.MANY)
#: The kernels of a GPU, by backend; the few-prototype ones keep all prototypes at hand. "dry" puts
#: those of the CPU in their place, to try the gates themselves.
GPU_KERNELS = {
    "cuda": (Variant("cuda-few", "cuda", _regime.FEW, "cuda", _regime.few_limit),),
    "triton": (
        Variant("triton-few", "triton", _regime.FEW, "cuda", _regime.few_limit),
        Variant("triton-many", "triton", _regime.MANY, "cuda"),
    ),
    # On the CPU, in a process where TRITON_INTERPRET=1 is set before triton is imported.
    "triton-interpreted": (
        Variant("triton-few", "triton", most_centres=_regime.few_limit),
        Variant("triton-many", "triton", _regime.MANY),
    ),
    "dry": (Variant("dry-few", "cpu", most_centres=_regime.few_limit), MANY),
}
#: `make gpu` names the backend whose gates it runs; without it the gates are those of the CPU.
GATES_OF = os.environ.get("CFAL_GATES_OF", "")
KERNELS = GPU_KERNELS[GATES_OF] if GATES_OF else (FEW, MANY)

_interpreted = GATES_OF == "triton-interpreted"
_mark = needs_kernels if not GATES_OF else () if _interpreted else pytest.mark.gpu

every_path = pytest.mark.parametrize(
    "path", [REFERENCE, *(pytest.param(p, marks=_mark) for p in KERNELS)], ids=str
)
every_kernel = pytest.mark.parametrize(
    "path", [pytest.param(p, marks=_mark) for p in KERNELS], ids=str
)
every_dtype = pytest.mark.parametrize("dtype", [F64, F32], ids=["f64", "f32"])


def same_package(**environment: str) -> dict[str, str]:
    """The environment for a process that shall import the package that was imported here."""
    root = str(Path(cfal.__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}


def value_and_grads(path, features, prototypes, target, upstream=None, **keywords):
    """(loss, grad_features, grad_prototypes) for `upstream`, which a scalar loss may go without."""
    f, w = features.detach().requires_grad_(), prototypes.detach().requires_grad_()
    loss = path(f, w, target, **keywords)
    return (loss.detach(), *torch.autograd.grad(loss, (f, w), upstream))


@dataclass(frozen=True)
class Sample:
    """Random inputs that float32 represents exactly, so that one truth serves both dtypes.

    Features lie at `distance` from their own prototype in units of the prototypes' spread; all of
    it lies at `offset` from the origin. sigma is `width` D.
    """

    rows: int
    classes: int
    centres: int = 1
    dim: int = 7
    distance: float = 1.0
    offset: float = 0.0
    seed: int = 0
    width: float = 2.0

    @property
    def keywords(self) -> dict:
        """Width 2 puts affinities near 1 / e, rho R near the margin (R is about 8 D).

        Nothing else is neutral.
        """
        weights = torch.linspace(0.5, 1.5, self.classes, dtype=F64).float()
        return {
            "sigma": self.width * self.dim,
            "gamma": 1.5,
            "diversity_weight": 0.01 / self.dim,
            "class_weights": weights,
        }

    def inputs(self, dtype: torch.dtype = F64):
        """Features [B, D], prototypes [C, M, D], targets [B]."""
        draw = torch.Generator().manual_seed(self.seed)
        w = torch.randn(self.classes, self.centres, self.dim, generator=draw, dtype=F64)
        y = torch.randint(self.classes, (self.rows,), generator=draw)
        centre = torch.randint(self.centres, (self.rows,), generator=draw)
        f = torch.randn(self.rows, self.dim, generator=draw, dtype=F64)
        f = w[y, centre] + self.distance * f
        return (f + self.offset).float().to(dtype), (w + self.offset).float().to(dtype), y

    def upstream(self, dtype: torch.dtype = F64) -> torch.Tensor:
        """One weight a row, of both signs."""
        draw = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.rows, generator=draw, dtype=F64).float().to(dtype)


@lru_cache(maxsize=64)
def truth_of(sample: Sample) -> Truth:
    return truth(*sample.inputs(), sample.upstream(), **sample.keywords)


def rows_and_grads(path: Variant, sample: Sample, dtype: torch.dtype):
    """Loss per row and both gradients of a sample, to compare with `truth_of`."""
    inputs, upstream = sample.inputs(dtype), sample.upstream(dtype)
    return value_and_grads(path, *inputs, upstream, reduction="none", **sample.keywords)


def errors_against(expected: Truth, got) -> dict[str, float]:
    """Norm-wise relative errors of loss per row, grad_f and grad_w."""
    pairs = zip(("loss", "grad_f", "grad_w"), got, vars(expected).values(), strict=True)
    return {name: relative_error(actual, exact) for name, actual, exact in pairs}


def assert_accurate(path: Variant, sample: Sample, dtype: torch.dtype) -> None:
    assert_close_to(truth_of(sample), rows_and_grads(path, sample, dtype), dtype)


def assert_close_to(expected: Truth, got, dtype: torch.dtype, tolerance: float = 0.0) -> None:
    """Loss, grad_f and grad_w within the gate's bound, or within `tolerance` if that is wider."""
    errors = errors_against(expected, got)
    assert max(errors.values()) < max(TOLERANCE[dtype], tolerance), errors


def assert_memory_does_not_matter(operators, arguments, monkeypatch) -> None:
    """Results with NaN in every new buffer are those without, and two backwards are equal.

    What is read was written before. `operators` is an `Operators`, `arguments` are its forward's.
    """

    def run():
        loss, saved = operators.forward(*arguments)
        upstream = torch.linspace(0.5, 1.5, loss.numel()).view(loss.shape)
        inputs = (upstream, saved, *arguments[:-1], True, True)
        first = operators.backward(*inputs)
        again = operators.backward(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        return loss, *first

    expected = run()
    new = torch.Tensor.new_empty

    def poisoned(*sizes, **options):
        made = new(*sizes, **options)
        return made.fill_(math.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    got = run()
    assert all(x.isfinite().all() for x in got)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
