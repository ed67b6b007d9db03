"""Compiles the objects for the torch and the GPU of this machine, into the checkout.

Nothing is fetched and nothing is installed: setup.py builds into build/gpu with the CMake, Ninja
and compilers that are there, and the objects are copied to cfal_kernels/_lib, from where the
checkout imports them. An object that cannot be built does not stop the others; its reason is in
build.json and is printed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from machine import ROOT, find_tool, gpu_facts

BUILT = ROOT / "build" / "gpu" / "lib"
LIB = ROOT / "cfal_kernels" / "_lib"


def main() -> int:
    environment = {**os.environ, "CFAL_BUILD": os.environ.get("GPU_BUILD", "auto")}
    if nvcc := find_tool("nvcc"):
        environment.setdefault("CUDACXX", nvcc)
    if capability := gpu_facts().get("compute_capability"):
        # For this machine's GPU alone: the other architectures cost time and run nowhere here.
        environment.setdefault("CFAL_CUDA_ARCHS", capability.replace(".", ""))
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(BUILT)]
    done = subprocess.run(command, cwd=ROOT, env=environment)
    record = BUILT / "cfal_kernels" / "_lib" / "build.json"
    if done.returncode or not record.is_file():
        print("setup.py did not build: see above; it needs setuptools 77 or newer")
        return 1
    shutil.rmtree(LIB, ignore_errors=True)
    shutil.copytree(record.parent, LIB)
    built = json.loads(record.read_text())
    for name in built["objects"]:
        print(f"built {name}")
    for name, reason in built["reasons"].items():
        print(f"not built: {name}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
