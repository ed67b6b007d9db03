"""The CUDA kernels as nvcc compiles them: no spills, 16-byte accesses, no sum by atomics."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

import cuda_resources
from cuda_resources import ARCHITECTURES, Resources, nvcc, read, tool

needs_nvcc = pytest.mark.skipif(
    nvcc() is None or not cuda_resources.SOURCE.is_file(),
    reason="needs the source checkout and nvcc of CUDA 12.8 or newer",
)
pytestmark = pytest.mark.xdist_group("cuda_compiled")
KERNELS = {
    f"few_{way}<{loader}>"
    for way in ("forward", "backward")
    for loader in (
        "Vectors<half, float>", "Vectors<bfloat16, float>", "Vectors<float, float>",
        "Vectors<double, double>", "Elements<float>", "Elements<double>",
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return cuda_resources.measure(tmp_path_factory.mktemp("cubin"))


def check(rows: list[Resources]) -> None:
    """Every kernel on every architecture, two blocks of 256 threads to a multiprocessor."""
    assert {(row.kernel, row.architecture) for row in rows} == {
        (kernel, architecture) for kernel in KERNELS for architecture in ARCHITECTURES
    }
    for row in rows:
        assert row.spill_stores == row.spill_loads == row.stack == 0, row
        assert row.registers <= 128, row
        assert row.static_shared <= 4096, row  # what csrc/cuda/plan.h reserves


def test_the_committed_report():
    check(read())


@pytest.mark.slow
@needs_nvcc
def test_resources(compiled):
    rows, _ = compiled
    check(rows)
    report = read()
    if rows[0].nvcc != report[0].nvcc:
        pytest.skip(f"the report is of nvcc {report[0].nvcc}, this is {rows[0].nvcc}: no spills")
    assert rows == report, "python tests/cuda_resources.py writes the report"


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_instructions(compiled, architecture):
    disassembler = tool("cuobjdump")
    if disassembler is None:
        pytest.skip("needs cuobjdump, of the CUDA toolkit or of Triton's wheel")
    _, code = compiled
    done = subprocess.run(
        [disassembler, "--dump-sass", code[architecture]], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cuobjdump does not read sm_{architecture}: {done.stderr.strip()[:80]}")
    functions = re.split(r"\bFunction : ", done.stdout)[1:]
    kernels = [f for f in functions if "few_" in f.splitlines()[0]]
    assert len(kernels) == len(KERNELS)
    for text in kernels:
        name = cuda_resources.name_of(text.splitlines()[0])
        assert not re.search(r"\b(LDL|STL)\b", text), name
        atomics = re.findall(r"\b(?:RED|ATOMG?|ATOMS)\.[A-Z0-9._]+", text)
        assert atomics, name  # tickets
        assert not [a for a in atomics if re.search(r"F(16|32|64)|BF16", a)], (name, atomics)
        assert re.search(r"\bLDS\.128\b", text), name
        if "Vectors" in name:
            assert re.search(r"\bLDG\.E\.128\b", text), name
            assert "backward" not in name or re.search(r"\bSTG\.E\.128\b", text), name


def test_a_missing_tool_is_none(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert nvcc() is None
