"""What a run was made with, for those who want to make it again."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "cfal-kernels",
    "torch",
    "lightning",
    "torchmetrics",
    "numpy",
    "scikit-learn",
    "pillow",
    "safetensors",
)


def describe() -> dict[str, object]:
    """Versions, commit, processor and accelerators; no names of people, hosts or folders."""
    import torch

    import cfal_kernels

    build = cfal_kernels.build_info()
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "commit": _commit(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        ],
        "kernels": {name: build[name] for name in ("version", "isa_in_use", "backends")},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package == "cfal-kernels":  # run from a checkout that is not installed
            import cfal_kernels

            return cfal_kernels.__version__
        return None


def _commit() -> str | None:
    """The commit of the checkout that this file is in, marked where files were changed."""
    here = Path(__file__).resolve()
    # An installed package can lie inside somebody else's repository.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=12")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
