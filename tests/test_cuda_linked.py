"""The shared object of the CUDA operators, built for one architecture under this torch.

What it leaves to others must be what a CUDA build of torch brings. A stand-in for the one function
of libtorch_cuda that it calls then lets it load here, and register its operators.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cuda_emulation import ROOT, program
from cuda_resources import nvcc
from support_kernels import needs_kernels, same_package

needs = [name for name in ("cmake", "ninja", "c++") if program(name) is None]
pytestmark = [
    pytest.mark.xdist_group("cuda_linked"),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files"),
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source checkout"),
    pytest.mark.skipif(nvcc() is None, reason="needs nvcc of CUDA 12.8 or newer"),
    pytest.mark.skipif(bool(needs), reason=f"needs {', '.join(needs)}"),
]
TORCH = Path(torch.__file__).parent
#: Of the C and C++ libraries, and of the loader.
SYSTEM = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_|^(_ITM_|__gmon_start__)")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The directory with cfal_torch_cuda.so."""
    folder = tmp_path_factory.mktemp("cuda")
    for command in (
        [program("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja",
         f"-DCMAKE_MAKE_PROGRAM={program('ninja')}", f"-DCMAKE_CUDA_COMPILER={nvcc()}",
         f"-DCFAL_TORCH_DIR={TORCH}", "-DCFAL_TORCH_CUDA=ON", "-DCFAL_CUDA_ARCHS=90"],
        [program("cmake"), "--build", folder, "--target", "cfal_torch_cuda", "--parallel", "1"],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


def read(tool: str, *arguments: str | Path) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def test_libraries(built):
    dynamic = read("readelf", "-d", built / "cfal_torch_cuda.so")
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    system = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "ld-linux-x86-64.so.2"}
    assert needed - system == {"libtorch_cpu.so", "libtorch_cuda.so"}
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_undefined_symbols(built):
    """All of the stable ABI but one are in the CPU's torch too; no name of C++ or CUDA is left."""
    text = read("nm", "-D", "--undefined-only", built / "cfal_torch_cuda.so")
    symbols = {line.split()[-1] for line in text.splitlines()}
    ours = {name for name in symbols if not SYSTEM.search(name)}
    of_torch = read("nm", "-D", "--defined-only", TORCH / "lib" / "libtorch_cpu.so")
    brought = {line.split()[-1].split("@")[0] for line in of_torch.splitlines()}
    assert "torch_library_impl" in ours
    assert ours - brought == {"aoti_torch_get_current_cuda_stream"}  # of libtorch_cuda


LOAD = """
import ctypes, sys, torch, cfal_kernels.ops
ctypes.CDLL(sys.argv[1] + "/libtorch_cuda.so")
has = torch._C._dispatch_has_kernel_for_dispatch_key
names = ("cfal::forward", "cfal::backward")
assert not any(has(name, "CUDA") for name in names)
torch.ops.load_library(sys.argv[1] + "/cfal_torch_cuda.so")
print([has(name, "CUDA") for name in names])
"""


@needs_kernels
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch brings the real library")
def test_loads_beside_a_stand_in(built):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, built], capture_output=True, text=True, env=same_package()
    )
    assert done.stdout.strip() == "[True, True]", done.stderr
