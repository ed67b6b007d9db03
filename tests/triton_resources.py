"""What triton makes of its kernels: registers, shared and local memory, instructions, grids.

No GPU is needed. The launchers themselves run, on tensors of the CPU, under a driver that names a
GPU, and a launch ends once its kernel is compiled: signature, constants and specialisations are
those of a real call, and what they return is never looked at. As a program it writes the report
that `test_triton_compiled.py` compares with:

    python tests/triton_resources.py
"""

from __future__ import annotations

import contextlib
import csv
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from cfal_kernels import _regime
from cuda_resources import ARCHITECTURES, tool

REPORT = Path(__file__).parent / "data" / "triton_resources.csv"
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
REDUCTIONS = ("none", "mean", "sum")


class Call(NamedTuple):
    """A forward and a backward with every gradient, diversity and class weights."""

    rows: int
    classes: int
    centres: int
    dim: int
    dtype: torch.dtype
    reduction: str = "mean"

    def __str__(self) -> str:
        classes = f"{self.classes} x {self.centres}" if self.centres > 1 else f"{self.classes}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"({self.rows}; {classes}; {self.dim}) {dtype} {self.reduction}"


#: One for each kernel and compute type, at the sizes that pick different tiles.
CALLS = (
    Call(256, 9, 1, 4096, F32),
    Call(65536, 9, 1, 512, BF16),
    Call(256, 9, 3, 512, F16),
    Call(300, 21, 3, 5, F64),
    Call(64, 64, 1, 512, F64, "none"),
    Call(8192, 1000, 1, 512, F32),
    Call(8192, 1000, 1, 512, BF16),
    Call(512, 130, 3, 512, F16),
    Call(300, 100, 1, 64, F64),
    Call(200, 70, 1, 40, F32),
)


@dataclass(frozen=True, order=True)
class Resources:
    """One kernel of a call on one architecture; bytes, and registers of a thread.

    Spilled registers lie in local memory; `number` counts the kernels of the call.
    """

    call: str
    architecture: int
    number: int
    kernel: str
    warps: int
    registers: int
    shared: int
    local: int
    triton: str


@cache
def disassembled(path: str) -> str:
    """Kernels that several calls share are read once."""
    command = [tool("cuobjdump"), "--dump-sass", "--dump-resource-usage", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Launch:
    """What one launch would have started."""

    def __init__(self, name: str, grid: tuple[int, ...], key: str, compiled: Any) -> None:
        self.name, self.grid, self.key, self.compiled = name, grid, key, compiled

    @property
    def code(self) -> str:
        """Disassembly with a line on the resources; needs cuobjdump."""
        return disassembled(self.compiled.metadata_group[f"{self.name}.cubin"])

    @property
    def ptx(self) -> str:
        return self.compiled.asm["ptx"]

    def resource(self, name: str) -> int:
        """Of "REG", "STACK", "LOCAL" and others."""
        return int(re.search(rf"\b{name}:(\d+)", self.code)[1])


class NoDevice:
    """Stands in for triton's driver: device n is a GPU of compute capability n."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)


@contextlib.contextmanager
def launches(architecture: int, *, compile: bool = True) -> Iterator[list[Launch]]:
    """Collects the launches made within it. Without `compile` only what would be compiled."""
    from triton import knobs
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []
    keys: list[str] = []
    run, before = JITFunction.run, driver._active

    def compile_only(self, *arguments, grid, warmup, **keywords):
        keys.clear()
        compiled = run(self, *arguments, grid=grid, warmup=True, **keywords)
        found.append(Launch(self.fn.__name__, grid, keys[0] if keys else "", compiled))

    def before_compiling(*, key, **_) -> bool:
        keys.append(str(key))
        return not compile  # True: somebody else takes care of compiling

    driver.set_active(NoDevice(architecture))
    try:
        with (
            mock.patch.object(JITFunction, "run", compile_only),
            mock.patch.object(knobs.runtime, "jit_cache_hook", before_compiling),
        ):
            yield found
    finally:
        driver.set_active(before)


def make(call: Call, zeros: Callable[..., torch.Tensor] = torch.zeros) -> None:
    """The launches of one call; `zeros` makes what is as long as the batch."""
    from cfal_kernels.triton import operators

    f = zeros((call.rows, call.dim), dtype=call.dtype)
    w = torch.empty(call.classes, call.centres, call.dim, dtype=call.dtype)
    y = zeros((call.rows,), dtype=torch.int64)
    compute = F64 if call.dtype == F64 else F32
    scalars = (130.0, 0.1, 2.0, 1.0, False, REDUCTIONS.index(call.reduction), -100)
    regime = _regime.of(call.classes * call.centres)
    arguments = (f, w, y, torch.ones(call.classes), *scalars, regime)
    loss, saved = operators._forward(*arguments, True)
    upstream = torch.ones((), dtype=compute).expand(loss.shape)
    operators._backward(upstream, saved, *arguments, True, True)


def compile_all(architecture: int) -> dict[Call, list[Launch]]:
    """Every kernel of `CALLS`, once where a call launches it again."""
    out = {}
    for call in CALLS:
        with launches(architecture) as found:
            make(call)
        out[call] = list({launch.compiled.hash: launch for launch in found}.values())
    return out


def measure(compiled: dict[Call, list[Launch]], architecture: int) -> Iterator[Resources]:
    """The rows of the report."""
    import triton

    for call, found in compiled.items():
        for number, launch in enumerate(found, 1):
            yield Resources(
                str(call), architecture, number, launch.name, launch.compiled.metadata.num_warps,
                launch.resource("REG"), launch.compiled.metadata.shared,
                launch.resource("STACK") + launch.resource("LOCAL"), triton.__version__,
            )  # fmt: skip


def read() -> list[Resources]:
    """The committed report."""
    with REPORT.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [Resources(*(int(v) if v.isdigit() else v for v in row.values())) for row in rows]


def main() -> None:
    rows = [row for a in ARCHITECTURES for row in measure(compile_all(a), a)]
    with REPORT.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Resources))
        writer.writerows(map(astuple, rows))


if __name__ == "__main__":
    main()
