"""What is measured: the shapes, their data, and which providers a shape leaves out, and why.

Data: features and prototypes normal of unit scale, sigma = 2 D (the mean squared distance, so that
affinities are of order 1 / e), class weights given, diversity on. "near" features are their own
prototype plus 0.1 normal: as late in training, most hinges are inactive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

MARGIN, GAMMA, DIVERSITY_WEIGHT = 0.1, 2.0, 1.0


class Goals(NamedTuple):
    """Least speed-ups over the eager and compiled forms, largest time against the softmax head."""

    broadcast: float | None = None
    gemm: float | None = None
    compiled: float | None = None
    softmax: float | None = None


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        B: rows.
        C: classes, of one centre each.
        D: features.
        features: "random" or "near".
        seconds: time that one provider may spend on its rounds, beyond the `least` ones.
        least: rounds that every provider gets.
        left_out: provider to the reason why it is not measured here.
        goals: what the fused kernels should reach.
    """

    B: int
    C: int
    D: int
    features: str = "random"
    seconds: float = 4.0
    least: int = 5
    left_out: Mapping[str, str] = field(default_factory=dict)
    goals: Goals = Goals()

    @property
    def sigma(self) -> float:
        return 2.0 * self.D

    def __str__(self) -> str:
        near = ", near" if self.features == "near" else ""
        return f"({self.B}, {self.C}, {self.D}{near})"


class Inputs(NamedTuple):
    """Leaves that require grad, and what belongs to them; bias is for the softmax head alone."""

    features: Tensor  # [B, D]
    prototypes: Tensor  # [C, D]
    bias: Tensor  # [C]
    target: Tensor  # [B]
    class_weights: Tensor  # [C]
    sigma: float


def make_inputs(case: Case, dtype: torch.dtype = torch.float32) -> Inputs:
    """The same float32 numbers for every provider, converted to `dtype`."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(case.C, case.D, generator=generator)
    target = torch.randint(case.C, (case.B,), generator=generator)
    features = torch.randn(case.B, case.D, generator=generator)
    if case.features == "near":
        features = prototypes[target] + 0.1 * features
    weights = torch.rand(case.C, generator=generator) + 0.5
    return Inputs(
        features.to(dtype).requires_grad_(),
        prototypes.to(dtype).requires_grad_(),
        torch.zeros(case.C, dtype=dtype, requires_grad=True),
        target,
        weights.to(dtype),
        case.sigma,
    )


_SAME = "its time does not depend on the data; see the row of random features"
_SLOW = "an inductor loop over B C D elements; compiled where D columns of few prototypes are cheap"
_HUGE = "[B, C, D] would take 68 GB"

SHAPES: dict[str, list[Case]] = {
    "full": [
        Case(32, 9, 128, goals=Goals(10, 8, 3, 0.8)),
        Case(256, 9, 4096, goals=Goals(80, 8, 4, 0.5)),
        Case(4096, 9, 512, goals=Goals(80, 8, 4, 0.5)),
        Case(
            1024,
            1000,
            512,
            least=2,
            seconds=8.0,
            left_out={"broadcast-compile": _SLOW},
            goals=Goals(400, 15, 2.5, 1.2),
        ),
        Case(
            1024,
            1000,
            512,
            features="near",
            seconds=5.0,
            left_out={"broadcast": _SAME, "broadcast-compile": _SLOW},
            goals=Goals(None, None, None, 0.7),
        ),
        Case(
            4096,
            8142,
            512,
            least=3,
            seconds=12.0,
            left_out={"broadcast": _HUGE, "broadcast-compile": _SLOW},
            goals=Goals(None, None, None, 1.3),
        ),
    ],
    # One case of either regime, in seconds: for tests of the benchmark itself.
    "small": [
        Case(8, 3, 16, seconds=0.05, left_out={"broadcast-compile": _SLOW}),
        Case(
            24,
            80,
            16,
            features="near",
            seconds=0.05,
            left_out={"broadcast": _SAME, "broadcast-compile": _SLOW},
        ),
    ],
}
