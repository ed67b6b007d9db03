"""The providers on a GPU: those of benchmarks/providers.py, forms for half precision, and ours.

- fused-cuda, fused-triton: cfal_kernels.cfal_loss with that backend
- gemm, broadcast, softmax: eager, as on the CPU
- gemm-compile, broadcast-compile: torch.compile; gemm-reduce, broadcast-reduce: the same in the
  mode reduce-overhead, which replays CUDA graphs
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

import providers
from providers import Step
from shapes import Inputs


def gemm(inputs: Inputs) -> Tensor:
    """GEMM eager; of half inputs only the product is taken in half precision."""
    f, w = inputs.features, inputs.prototypes
    if f.dtype == torch.float32:
        return providers.gemm(inputs)
    product = (f @ w.t()).float()
    f, w = f.float(), w.float()
    q = f.square().sum(1, keepdim=True) + w.square().sum(1) - 2.0 * product
    return providers.loss_of_distances(q.clamp_min(0.0), inputs, providers.diversity(w).to(q.dtype))


def softmax(inputs: Inputs) -> Tensor:
    """Linear head and weighted cross-entropy, the latter in float32 as autocast has it."""
    logits = functional.linear(inputs.features, inputs.prototypes, inputs.bias).float()
    return functional.cross_entropy(logits, inputs.target, weight=inputs.class_weights)


FUNCTIONS: dict[str, Callable[[Inputs], Tensor]] = {
    "fused-cuda": partial(providers.fused, backend="cuda"),
    "fused-triton": partial(providers.fused, backend="triton"),
    "gemm": gemm,
    "broadcast": providers.broadcast,
    "softmax": softmax,
}
MODES = {"compile": "default", "reduce": "reduce-overhead"}


def make_step(name: str, inputs: Inputs, dry: bool = False) -> Step:
    """A provider on leaves of its own; in a dry run the CPU's kernels stand in for ours."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in inputs[:3]]
    if name == "softmax":
        scale = inputs.prototypes.shape[1] ** -0.5  # see providers.make_step
        leaves[1] = (inputs.prototypes.detach() * scale).requires_grad_()
    base, _, mode = name.partition("-")
    if name in FUNCTIONS:
        function = providers.fused if dry and base == "fused" else FUNCTIONS[name]
    else:
        function = torch.compile(FUNCTIONS[base], fullgraph=True, dynamic=False, mode=MODES[mode])
    return Step(name, function, Inputs(*leaves, *inputs[3:]))


def truth(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients of the GEMM form in float64, of the very numbers of `inputs`."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in inputs[:3]]
    wide = Inputs(*leaves, inputs.target, inputs.class_weights.double(), inputs.sigma)
    return providers.results(Step("truth", providers.gemm, wide))
