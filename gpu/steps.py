"""A few steps of one backend on small shapes, compared with the definition in float64.

    python gpu/steps.py triton              the first check after a build
    compute-sanitizer python gpu/steps.py cuda --small

The sanitizers slow a kernel down by orders of magnitude: --small leaves the large shapes out.
"""

from __future__ import annotations

import argparse
import sys

import torch

import cfal_kernels as cfal

#: B, C, M, D, dtype. Tails in every direction, both regimes, each width of an element.
SMALL = (
    (5, 3, 1, 7, torch.float32),
    (37, 9, 1, 130, torch.float32),
    (21, 4, 3, 33, torch.float64),
    (33, 9, 1, 72, torch.bfloat16),
    (70, 131, 1, 67, torch.float32),
    (35, 70, 1, 48, torch.float16),
)
LARGE = ((256, 9, 1, 4096, torch.float32), (2048, 1000, 1, 256, torch.float32))
#: Of the input's rounding of a gradient, or of float32 arithmetic over D terms.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}
HALF_TOLERANCE = 1e-2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backend", choices=("cuda", "triton", "dry"))
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    failures = successes = 0
    for shape in SMALL if options.small else SMALL + LARGE:
        B, C, M, D, dtype = shape
        if reason := why_refused(options.backend, *shape):
            print(f"-    ({B}, {C} x {M}, {D}) {dtype}: {reason}")
            continue
        try:
            error = step(options.backend, *shape)
            fine = error < TOLERANCE.get(dtype, HALF_TOLERANCE)
            text = f"error {error:.1e}"
        except Exception as failure:  # the next shape may tell more
            fine, text = False, str(failure).strip().splitlines()[0]
        failures += not fine
        successes += fine
        print(f"{'ok  ' if fine else 'FAIL'} ({B}, {C} x {M}, {D}) {dtype}: {text}", flush=True)
    return 1 if failures or not successes else 0


def why_refused(backend: str, B: int, C: int, M: int, D: int, dtype: torch.dtype) -> str:
    """Why the backend does not serve such a call, or ""."""
    if backend == "dry":
        return ""
    f, w = (torch.empty(shape, dtype=dtype, device="cuda") for shape in ((B, D), (C, M, D)))
    try:
        cfal.explain(f, w, backend=backend)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def step(backend: str, B: int, C: int, M: int, D: int, dtype: torch.dtype) -> float:
    """Largest relative error (2-norm) of loss and gradients of one step."""
    draw = torch.Generator().manual_seed(0)
    f = torch.randn(B, D, generator=draw).to(dtype)
    w = torch.randn(C, M, D, generator=draw).to(dtype)
    y = torch.randint(C, (B,), generator=draw)
    y[1] = -100
    keywords = {"sigma": 2.0 * D, "diversity_weight": 0.01 / D}
    # A stranger between the definition and the kernels would hide an error of either.
    exact = gradients(cfal.reference.cfal_loss, f.double(), w.double(), y, **keywords)
    device = "cpu" if backend == "dry" else "cuda"
    keywords["backend"] = "cpu" if backend == "dry" else backend
    got = gradients(cfal.cfal_loss, f.to(device), w.to(device), y.to(device), **keywords)
    errors = [(a.double().cpu() - e).norm() / e.norm() for a, e in zip(got, exact, strict=True)]
    return max(x.item() if x == x else float("inf") for x in errors)


def gradients(function, f, w, y, **keywords) -> tuple[torch.Tensor, ...]:
    f, w = f.detach().requires_grad_(), w.detach().requires_grad_()
    loss = function(f, w, y, **keywords)
    return loss.detach(), *torch.autograd.grad(loss, (f, w))


if __name__ == "__main__":
    sys.exit(main())
