"""What nvcc makes of the CUDA kernels: registers, shared memory, spills, instructions.

As a program it writes the report that `test_cuda_compiled.py` compares with:

    python tests/cuda_resources.py
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "csrc" / "cuda" / "cfal.cu"
REPORT = Path(__file__).parent / "data" / "cuda_resources.csv"
ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True, order=True)
class Resources:
    """One kernel on one architecture; bytes, and registers of a thread."""

    kernel: str
    architecture: int
    registers: int
    static_shared: int
    stack: int
    spill_stores: int
    spill_loads: int
    nvcc: str


def nvcc() -> str | None:
    """The CUDA compiler, if it knows all of `ARCHITECTURES`."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates = [os.environ.get("CUDACXX") or "nvcc", *(f"{home}/bin/nvcc" for home in homes)]
    found = next(filter(None, map(shutil.which, candidates)), None)
    if found is None or tuple(map(int, release(found).split("."))) < (12, 8):
        return None
    return found


def release(compiler: str) -> str:
    """As in "13.0"."""
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    return re.search(r"release (\d+\.\d+)", text)[1]


def tool(name: str) -> str | None:
    """A tool of the CUDA toolkit, or the copy in Triton's wheel."""
    if found := shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}"):
        return found
    spec = importlib.util.find_spec("triton")
    carried = spec and Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
    return str(carried) if carried and carried.is_file() else None


def compile_for(compiler: str, architecture: int, folder: Path) -> tuple[Path, str]:
    """The machine code for an architecture, and what ptxas says of it."""
    out = folder / f"cfal_sm_{architecture}.cubin"
    done = subprocess.run(
        [compiler, "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", "-Xptxas", "-v", "-cubin",
         f"-arch=sm_{architecture}", SOURCE, "-o", out],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return out, done.stderr


def name_of(symbol: str) -> str:
    """A mangled kernel as in "few_forward<Vectors<half, float>>"."""
    kernel = re.search(r"few_(?:forward|backward)", symbol)[0]
    if "8Elements" in symbol:
        loader = "Elements<double>" if "8ElementsIdE" in symbol else "Elements<float>"
    else:
        dtypes = {"I6__half": "half", "I13__nv_bfloat16": "bfloat16", "If": "float", "Id": "double"}
        inside = symbol.split("7Vectors")[1]
        dtype = next(name for code, name in dtypes.items() if inside.startswith(code))
        loader = f"Vectors<{dtype}, {'double' if dtype == 'double' else 'float'}>"
    return f"{kernel}<{loader}>"


def parse(log: str, architecture: int, nvcc_release: str) -> Iterator[Resources]:
    """The kernels in the output of ptxas -v."""
    for part in log.split("Compiling entry function '")[1:]:
        symbol = part.split("'")[0]
        frame = re.search(
            rf"properties for {re.escape(symbol)}\s+(\d+) bytes stack frame, "
            r"(\d+) bytes spill stores, (\d+) bytes spill loads", part
        )  # fmt: skip
        shared = re.search(r"(\d+) bytes smem", part)
        yield Resources(
            name_of(symbol), architecture, int(re.search(r"Used (\d+) registers", part)[1]),
            int(shared[1]) if shared else 0, *map(int, frame.groups()), nvcc_release,
        )  # fmt: skip


def measure(folder: Path) -> tuple[list[Resources], dict[int, Path]]:
    """Compiles for every architecture; the resources, and the machine code."""
    compiler = nvcc()
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda arch: compile_for(compiler, arch, folder), ARCHITECTURES))
    rows, code = [], {}
    for architecture, (path, log) in zip(ARCHITECTURES, done, strict=True):
        rows += parse(log, architecture, release(compiler))
        code[architecture] = path
    return sorted(rows), code


def read() -> list[Resources]:
    """The committed report."""
    with REPORT.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [Resources(*(int(v) if v.isdigit() else v for v in row.values())) for row in rows]


def main() -> None:
    if nvcc() is None:
        sys.exit("error: no nvcc of CUDA 12.8 or newer; install the CUDA toolkit, or set CUDACXX")
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = measure(Path(folder))
    REPORT.parent.mkdir(exist_ok=True)
    with REPORT.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Resources))
        writer.writerows(map(astuple, rows))


if __name__ == "__main__":
    main()
