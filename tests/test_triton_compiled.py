"""The Triton kernels as triton compiles them, for GPUs that are not here.

No spills, tickets but no sum by atomics, the assertion on targets; and launches that fit a grid and
do not compile again for every batch size.
"""

from __future__ import annotations

import functools
import importlib.util
import re

import pytest
import torch

import triton_resources
from cfal_kernels.triton import interpreter
from cuda_resources import tool
from triton_resources import ARCHITECTURES, BF16, CALLS, F16, F32, F64, Call, launches, make

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is missing"),
    pytest.mark.skipif(interpreter.enabled(), reason="TRITON_INTERPRET=1: nothing is compiled"),
]
needs_cuobjdump = pytest.mark.skipif(
    tool("cuobjdump") is None, reason="needs cuobjdump, of the CUDA toolkit or of Triton's wheel"
)
every_architecture = pytest.mark.parametrize(
    "architecture",
    # What is compiled for one is kept by the process.
    [pytest.param(a, marks=pytest.mark.xdist_group(f"triton_sm_{a}")) for a in ARCHITECTURES],
)
#: The kernels that multiply matrices.
PRODUCTS = ("affinities_kernel", "features_kernel", "prototypes_kernel")
#: Those launched with near pairs and without.
TWICE = ("features_kernel", "prototypes_kernel")
compiled = functools.cache(triton_resources.compile_all)


def launches_of(architecture: int):
    return [(call, x) for call, found in compiled(architecture).items() for x in found]


def test_the_committed_report():
    rows = triton_resources.read()
    assert {(row.call, row.architecture) for row in rows} == {
        (str(call), architecture) for call in CALLS for architecture in ARCHITECTURES
    }
    assert all(row.local == 0 for row in rows)


@pytest.mark.slow
@needs_cuobjdump
@every_architecture
def test_resources(architecture):
    import triton

    rows = list(triton_resources.measure(compiled(architecture), architecture))
    for row in rows:
        assert row.local == 0, f"spills: {row}"
    report = [row for row in triton_resources.read() if row.architecture == architecture]
    if report[0].triton != triton.__version__:
        pytest.skip(f"the report is of triton {report[0].triton}: no spills, no more compared")
    assert rows == report, "python tests/triton_resources.py writes the report"


@pytest.mark.slow
@needs_cuobjdump
@every_architecture
def test_instructions(architecture):
    for call, launch in launches_of(architecture):
        where = f"{launch.name} of {call}"
        assert not re.search(r"\b(LDL|STL)\b", launch.code), where
        atomics = re.findall(r"\b(?:RED|REDG|ATOM|ATOMG|ATOMS)\.[A-Z0-9._]+", launch.code)
        assert not [a for a in atomics if re.search(r"F(16|32|64)|BF16", a)], (where, atomics)


@needs_cuobjdump
@every_architecture
def test_products_are_of_tensor_cores(architecture):
    """In every dtype; for float64 triton takes none on sm_100."""
    cores = {80: r"HMMA", 90: r"HGMMA", 100: r"UTC\w*MMA"}[architecture]
    double = "DFMA" if architecture == 100 else "DMMA"
    found = set()
    for call, launch in launches_of(architecture):
        if launch.name in PRODUCTS:
            expected = double if call.dtype == F64 else cores
            assert re.search(rf"\b{expected}\b", launch.code), f"{launch.name} of {call}"
            found.add((launch.name, call.dtype))
    assert found == {(name, dtype) for name in PRODUCTS for dtype in (F16, BF16, F32, F64)}


@every_architecture
def test_tickets_and_assertions(architecture):
    """The assertion is there without TRITON_DEBUG; a ticket releases and acquires."""
    for call, launch in launches_of(architecture):
        where = f"{launch.name} of {call}"
        if launch.name == "forward_kernel":
            assert "__assertfail" in launch.ptx, where
            assert ("atom.global.gpu.acq_rel" in launch.ptx) == (call.reduction != "none"), where


def keys(calls) -> dict[str, set[str]]:
    """What would be compiled, by kernel."""
    found: dict[str, set[str]] = {}
    for call in calls:
        with launches(90, compile=False) as made:
            make(call)
        for launch in made:
            found.setdefault(launch.name, set()).add(launch.key)
    return found


@pytest.mark.parametrize("classes,most", [(9, 2), (130, 6)], ids=["few", "many"])
def test_batch_sizes_share_their_kernels(classes, most):
    """Below and above the sizes at which tiles, chunks or splits begin to pay; no other reasons."""
    sizes = (1, 2, 3, 5, 17, 33, 64, 100, 128, 250, 256, 1000, 4095, 4096, 5000, 65536, 70001)
    for call in (Call(0, classes, 1, 64, F32), Call(0, classes, 1, 64, BF16, "none")):
        for name, seen in keys(call._replace(rows=rows) for rows in sizes).items():
            assert len(seen) <= most * (1 + (name in TWICE)), (name, len(seen))


@pytest.mark.parametrize(
    "rows,classes,dim",
    [
        (1, 9, 1), (40_000_000, 9, 1), (40_000_000, 2, 8), (3, 9, 3_000_000),
        (1, 70, 1), (2_000_000, 70, 8), (3, 70, 300_000), (3, 300_000, 8),
    ],
)  # fmt: skip
def test_grids_fit(rows, classes, dim):
    """2^31 - 1 blocks in x, 65535 in y and z."""

    def one_row(size, dtype):
        return torch.zeros(1, *size[1:], dtype=dtype).expand(size)

    with launches(90, compile=False) as made:
        make(Call(rows, classes, 1, dim, F32), one_row)
    assert made
    for launch in made:
        first, *others = launch.grid
        assert 1 <= first < 2**31 and all(1 <= n < 2**16 for n in others), launch.name
