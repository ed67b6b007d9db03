"""The ways to compute the loss that are compared, and the softmax head that one would pay else.

- broadcast: the authors' formulation: materialises [B, C, D], and [C, C, D] for R
- gemm: |f|^2 + |w|^2 - 2 f w, and R from second moments, as one would write it by hand
- gemm-compile: torch.compile of gemm
- broadcast-compile: torch.compile of broadcast
- fused: cfal_kernels.cfal_loss, backend "cpu"
- softmax: linear layer with bias + weighted cross_entropy: another loss, for scale
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import cfal_kernels as cfal
from shapes import DIVERSITY_WEIGHT, GAMMA, MARGIN, Inputs


def loss_of_distances(q: Tensor, inputs: Inputs, diversity: Tensor) -> Tensor:
    """Mean of Eq. 7 from squared distances q [B, C] and R."""
    a = torch.exp(-q / inputs.sigma)
    s = a.gather(1, inputs.target[:, None])
    # The own class adds max(0, lambda) to the sum over all classes, whatever s is.
    hinges = torch.relu(MARGIN + a - s).sum(1) - MARGIN
    focal = (1.0 - s[:, 0]).pow(GAMMA)
    weights = inputs.class_weights[inputs.target]
    return (weights * focal * (hinges + DIVERSITY_WEIGHT * diversity)).mean()


def broadcast(inputs: Inputs) -> Tensor:
    """All differences at once, as in the authors' Keras layer."""
    f, w = inputs.features, inputs.prototypes
    q = (f[:, None, :] - w[None, :, :]).square().sum(-1)
    pairs = (w[:, None, :] - w[None, :, :]).square().sum(-1)
    j, k = torch.triu_indices(len(w), len(w), offset=1, device=w.device)
    distances = pairs[j, k]
    return loss_of_distances(q, inputs, (distances - distances.mean()).square().mean())


def diversity(w: Tensor) -> Tensor:
    """R of prototypes [C, D] in closed form (docs/maths.md), its scalars in double."""
    x = w - w.mean(0)
    moments = x.t() @ x if x.shape[0] > x.shape[1] else x @ x.t()
    count = x.shape[0]
    pairs = count * (count - 1) / 2
    norms = x.square().sum(1).double()
    total = norms.sum()
    second = count * norms.square().sum() + total.square() + 2.0 * moments.double().square().sum()
    return second / pairs - (count * total / pairs).square()


def gemm(inputs: Inputs) -> Tensor:
    """Distances by the expansion, R in closed form."""
    f, w = inputs.features, inputs.prototypes
    q = torch.addmm(w.square().sum(1), f, w.t(), alpha=-2.0) + f.square().sum(1, keepdim=True)
    return loss_of_distances(q.clamp_min(0.0), inputs, diversity(w).to(q.dtype))


def fused(inputs: Inputs, backend: str = "cpu") -> Tensor:
    """The public call."""
    return cfal.cfal_loss(
        inputs.features,
        inputs.prototypes,
        inputs.target,
        class_weights=inputs.class_weights,
        sigma=inputs.sigma,
        margin=MARGIN,
        gamma=GAMMA,
        diversity_weight=DIVERSITY_WEIGHT,
        backend=backend,
    )


def softmax(inputs: Inputs) -> Tensor:
    """Linear head and weighted cross-entropy."""
    logits = functional.linear(inputs.features, inputs.prototypes, inputs.bias)
    return functional.cross_entropy(logits, inputs.target, weight=inputs.class_weights)


def _compiled(function: Callable[[Inputs], Tensor]) -> Callable[[], Callable[[Inputs], Tensor]]:
    return lambda: torch.compile(function, fullgraph=True, dynamic=False)


# Called once a case, so that no shape meets the guards or limits of an earlier one.
PROVIDERS: dict[str, Callable[[], Callable[[Inputs], Tensor]]] = {
    "broadcast": lambda: broadcast,
    "gemm": lambda: gemm,
    "gemm-compile": _compiled(gemm),
    "broadcast-compile": _compiled(broadcast),
    "fused": lambda: fused,
    "softmax": lambda: softmax,
}


@dataclass
class Step:
    """A provider on its inputs."""

    name: str
    function: Callable[[Inputs], Tensor]
    inputs: Inputs

    def zero_grad(self) -> None:
        for leaf in self.inputs[:3]:
            leaf.grad = None

    def forward(self) -> Tensor:
        return self.function(self.inputs)

    def both(self) -> Tensor:
        self.zero_grad()
        loss = self.forward()
        loss.backward()
        return loss


def make_step(name: str, inputs: Inputs) -> Step:
    """The provider of that name on leaves of its own, which share the data of `inputs`."""
    leaves = [leaf.detach().requires_grad_() for leaf in inputs[:3]]
    if name == "softmax":
        # Weights of a linear layer's usual scale: at unit scale the logits spread by sqrt(D), the
        # softmax underflows to subnormal numbers, and the head is timed at many times its cost.
        scale = inputs.prototypes.shape[1] ** -0.5
        leaves[1] = (inputs.prototypes.detach() * scale).requires_grad_()
    return Step(name, PROVIDERS[name](), Inputs(*leaves, *inputs[3:]))


def results(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients of one step, in float64."""
    loss = step.both().detach()
    features, prototypes = step.inputs.features.grad, step.inputs.prototypes.grad
    return loss.double(), features.double(), prototypes.double()
