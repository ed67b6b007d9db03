"""What is measured on a GPU: shapes and dtypes, and who takes part in each.

Data as in benchmarks/shapes.py. In half precision features and prototypes are both of that dtype,
as autocast would hand them to a linear layer; class weights stay float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from shapes import Case, Inputs, make_inputs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

#: The opponents, from the most important on.
EAGER = ("softmax", "gemm")
COMPILED = ("gemm-compile", "gemm-reduce")
COMPILED_BROADCAST = ("broadcast-compile", "broadcast-reduce")
FUSED = ("fused-triton", "fused-cuda")
LARGEST_BROADCAST = 4e9  # bytes of [B, C, D]


class GpuCase(NamedTuple):
    """One shape in one dtype.

    Attributes:
        case: B, C, D and the kind of features.
        dtype: "float32" or "bfloat16", of features and prototypes.
        seconds: estimate of the time that measuring it takes, compiling included.
    """

    case: Case
    dtype: str = "float32"
    seconds: float = 40.0

    @property
    def providers(self) -> tuple[str, ...]:
        """Who is measured; the [B, C, D] of broadcast must fit, and R = 0 suits two classes."""
        size = self.case.B * self.case.C * self.case.D * DTYPES[self.dtype].itemsize
        small = size < LARGEST_BROADCAST and self.case.C <= 64
        fused = FUSED if self.case.C <= 64 else FUSED[:1]
        # What broadcast rounds in half precision is not worth a comparison.
        broadcast = (*COMPILED_BROADCAST, "broadcast") if self.dtype == "float32" and small else ()
        return (*fused, *EAGER, *COMPILED, *broadcast)

    def __str__(self) -> str:
        return f"{self.case} {self.dtype}"

    def inputs(self, device: str) -> Inputs:
        """The numbers of `make_inputs` on the device, in the case's dtype."""
        inputs = make_inputs(self.case)
        dtype = DTYPES[self.dtype]
        leaves = (x.detach().to(device, dtype).requires_grad_() for x in inputs[:3])
        return Inputs(*leaves, inputs.target.to(device), inputs.class_weights.to(device), inputs[5])


def _near(B: int, C: int, D: int) -> Case:
    return Case(B, C, D, features="near")


CASES: dict[str, list[GpuCase]] = {
    # In the order of their importance: time may run out.
    "few": [
        GpuCase(Case(32, 9, 128)),
        GpuCase(Case(256, 9, 4096)),
        GpuCase(Case(65536, 9, 512)),
        GpuCase(Case(256, 9, 512)),
        GpuCase(Case(32, 2, 128)),
        GpuCase(Case(65536, 9, 512), "bfloat16"),
        GpuCase(Case(128, 5, 1024)),
        GpuCase(Case(256, 9, 512), "bfloat16"),
    ],
    "many": [
        GpuCase(Case(8192, 1000, 512)),
        GpuCase(Case(8192, 1000, 512), "bfloat16"),
        GpuCase(_near(8192, 1000, 512)),
        GpuCase(Case(32768, 10000, 512), "bfloat16"),
        GpuCase(_near(32768, 10000, 512), "bfloat16"),
        GpuCase(Case(32768, 10000, 512), seconds=60.0),
        GpuCase(_near(32768, 10000, 512), seconds=60.0),
        GpuCase(_near(8192, 1000, 512), "bfloat16"),
    ],
    # For the test of the benchmark itself.
    "dry": [GpuCase(Case(8, 3, 16)), GpuCase(Case(24, 80, 16, features="near"), "bfloat16")],
}
QUICK = {"few": 3, "many": 3}
