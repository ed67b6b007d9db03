"""What this machine is and has: the GPU, versions, programs, and the state of the sources.

As a program it prints the facts as JSON. It runs in a process of its own, so that whoever asks
holds no CUDA context beside the measurements.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

#: What the parts import beyond torch, and who needs it.
PACKAGES = {
    "setuptools": "build",
    "cmake": "build",
    "ninja": "build",
    "pybind11": "build",
    "numpy": "gates",
    "pytest": "gates",
    "hypothesis": "gates",
    "mpmath": "gates",
    "xdist": "gates (several processes; optional)",
    "pytest_timeout": "gates (ends a test that hangs; optional)",
    "triton": "the Triton backend and torch.compile",
}


def cuda_homes() -> list[Path]:
    """Where a CUDA toolkit may lie, the most explicit place first."""
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    found = [Path(nvcc).resolve().parent.parent] if nvcc else []
    usual = [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    return [path for path in (*map(Path, named), *found, *usual) if path.is_dir()]


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, on PATH or in the toolkit's folders."""
    if found := shutil.which(name):
        return found
    for home in cuda_homes():
        for folder in (home / "bin", home / name):
            if (folder / name).is_file():
                return str(folder / name)
    return None


def first_line(*command: str, containing: str = "") -> str:
    """The first line of a program's output that contains a word; "" if there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if containing in line), "")


def driver() -> str:
    """Version of the NVIDIA driver, or "unknown"."""
    asked = first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if re.fullmatch(r"[\d.]+", asked):
        return asked
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return found[0] if found else "unknown"


def commit() -> str:
    """The checkout's commit; GPU_COMMIT where the sources came here without git."""
    here = first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if not re.fullmatch(r"[0-9a-f]{7,40}", here):
        return os.environ.get("GPU_COMMIT", "unknown")
    paths = ("csrc", "cfal_kernels", "CMakeLists.txt")
    command = ("git", "-C", str(ROOT), "status", "--porcelain", "--", *paths)
    done = subprocess.run(command, capture_output=True, text=True)
    own = [x for x in done.stdout.splitlines() if not x.endswith("cfal_kernels/hardware.json")]
    return f"{here}-changed" if own else here


def digest(*patterns: str, root: Path = ROOT) -> str:
    """A digest of the files that match, by name and content; needs no git."""
    files = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(str(path.relative_to(root)).encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


#: Everything that decides what the kernels compute, and what the gates ask of them.
SOURCES = ("cfal_kernels/**/*.py", "csrc/**/*", "CMakeLists.txt")
GATES = ("tests/*.py", "tests/gpu/*.py")


def version_of(module: str) -> str | None:
    """Version of an importable package, None if it is missing."""
    if importlib.util.find_spec(module) is None:
        return None
    names = {"xdist": "pytest-xdist", "pytest_timeout": "pytest-timeout"}
    try:
        return importlib.metadata.version(names.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def gpu_facts() -> dict[str, Any]:
    """What torch says about device 0; ``{"error": ...}`` where it can use none."""
    try:
        import torch
    except ImportError as error:
        return {"error": f"{sys.executable} cannot import torch: {error}"}
    if torch.version.cuda is None:
        return {"error": f"torch {torch.__version__} is a build without CUDA"}
    if not torch.cuda.is_available():
        return {"error": f"torch {torch.__version__} sees no CUDA device"}
    facts = torch.cuda.get_device_properties(0)
    return {
        "gpu": facts.name,
        "compute_capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_gib": round(facts.total_memory / 2**30, 1),
        "l2_mib": round(facts.L2_cache_size / 2**20, 1),
        "devices": torch.cuda.device_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def facts() -> dict[str, Any]:
    """Everything, in plain types."""
    nvcc = find_tool("nvcc")
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    return {
        **gpu_facts(),
        "driver": driver(),
        "nvcc": first_line(nvcc, "--version", containing="release") if nvcc else None,
        "compiler": first_line(compiler, "--version") if compiler else None,
        "sanitizer": find_tool("compute-sanitizer"),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "commit": commit(),
        "sources": digest(*SOURCES),
        "gates": digest(*SOURCES, *GATES),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


if __name__ == "__main__":
    print(json.dumps(facts()))
