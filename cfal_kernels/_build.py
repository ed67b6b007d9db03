"""What the build left behind: compiled objects, and the record that setup.py wrote beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "_lib"
TORCH_CPU = "cfal_torch_cpu"
TORCH_CUDA = "cfal_torch_cuda"
TORCH_AUTOGRAD = "cfal_torch_autograd"
NUMPY_DOOR = "_numpy_door"


def record() -> dict[str, Any]:
    """The contents of build.json; empty where there is none."""
    try:
        return json.loads((FOLDER / "build.json").read_text())
    except (OSError, ValueError):
        return {}


def find(name: str) -> Path | None:
    """The compiled object `name`, or None."""
    found = sorted(FOLDER.glob(f"{name}.*so")) + sorted(FOLDER.glob(f"{name}.*pyd"))
    return found[0] if found else None


def why_missing(name: str) -> str:
    """Why the object `name` is not there, with the remedy."""
    built = record()
    if reason := built.get("reasons", {}).get(name):
        return f"{name} is not part of this build: {reason}"
    checkout = FOLDER.parents[1]
    if not built and (checkout / "setup.py").is_file():
        return (
            f"{name} is not built in {checkout}, the source checkout that Python imports here; run "
            f"`make install` there, or start Python in another directory to import the installed "
            f"package"
        )
    return (
        f"{name} is not part of this build; install the package with a C++ compiler and torch "
        f"present (pip install .), and see python -m cfal_kernels.info"
    )
