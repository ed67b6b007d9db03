"""The CUDA kernels on the CPU: csrc/cuda compiled with the emulation in tests/cpp, as operators.

`torch.ops.cfal_emulated` runs the kernels' own sources, launch plans and operator code; only the
GPU is replaced. What it cannot show is what the hardware adds: races between warps, time, and the
code that nvcc makes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from cfal_kernels import _arguments, _regime, autograd, ops

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "emulation"


def program(name: str) -> str | None:
    scripts = sysconfig.get_path("scripts")
    return shutil.which(name, path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))


def why_not() -> str:
    """Why the emulation cannot be built here, or ""."""
    if sys.platform != "linux":
        return "the emulation needs ucontext.h and fcntl"
    if not (ROOT / "csrc" / "cuda" / "cfal.cu").is_file():
        return "needs the source checkout"
    missing = [name for name in ("cmake", "ninja", "c++") if program(name) is None]
    return f"needs {', '.join(missing)}" if missing else ""


needs_emulation = pytest.mark.skipif(bool(why_not()), reason=why_not())


@cache
def operators() -> ops.Operators:
    """Builds the emulation, as far as it is not built, and loads it."""
    import fcntl  # not everywhere; why_not comes first

    cmake, ninja = program("cmake"), program("ninja")
    torch_dir = Path(torch.__file__).parent
    commands = (
        [cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
         "-DCFAL_EMULATION=ON", f"-DCFAL_TORCH_DIR={torch_dir}"],
        [cmake, "--build", BUILD, "--target", "cfal_emulated", "--parallel", "2"],
    )  # fmt: skip
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes may come at the same time
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    torch.ops.load_library(BUILD / "cfal_emulated.so")
    namespace = torch.ops.cfal_emulated
    return ops.Operators(namespace.forward.default, namespace.backward.default)


class Emulated:
    """Takes the arguments of `cfal_kernels.cfal_loss`, less backend."""

    name = "cuda-emulated"

    def __call__(
        self,
        features,
        prototypes,
        target,
        *,
        class_weights=None,
        sigma=130.0,
        margin=0.1,
        gamma=2.0,
        diversity_weight=1.0,
        detach_focal=False,
        reduction="mean",
        ignore_index=-100,
    ) -> torch.Tensor:
        class_weights, parameters = _arguments.check(
            features, prototypes, target, class_weights,
            sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index,
        )  # fmt: skip
        parameters = (*parameters[:-1], _regime.FEW)
        return autograd.apply(features, prototypes, target, class_weights, parameters, operators())

    def __str__(self) -> str:
        return self.name


EMULATED = Emulated()


@contextlib.contextmanager
def device(*, order: str = "forward", shared: int = 100) -> Iterator[None]:
    """Runs blocks and threads "forward" or "backward", with that much shared memory in KiB."""
    settings = {"CFAL_EMULATED_ORDER": order, "CFAL_EMULATED_SHARED": str(shared)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
