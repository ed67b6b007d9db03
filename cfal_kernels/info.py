"""Facts about this installation: ``python -m cfal_kernels.info`` prints them, torch or no torch."""

from __future__ import annotations

import platform
from typing import Any

from . import __version__, _build, hardware


def build_info() -> dict[str, Any]:
    """What was built, for what, and what serves here.

    Returns:
        A dict with
        ``version`` of the package; ``python`` and ``machine`` at run time;
        ``build``: mode, compiler, flags, isa (compiled instruction sets), torch_headers, reasons
        for what is missing; empty if the build left no record;
        ``objects``: name to path, or None;
        ``isa_in_use``: instruction set that the kernels chose on this machine, or None if unknown;
        ``numpy_door``: "available" or the reason why not;
        ``autograd_function``: "C++", or the reason why it is the slower one in Python;
        ``torch``: version at run time, or None;
        ``backends``: name to "available" or the reason why not, for few float32 prototypes on the
        backend's own device;
        ``hardware``: for each GPU backend, the runs in which it passed every gate on a device,
        without which `auto` does not take it (`cfal_kernels.hardware`).

    Example:
        >>> build_info()["backends"]["cpu"]
        'available'
    """
    names = (_build.TORCH_CPU, _build.TORCH_CUDA, _build.TORCH_AUTOGRAD, _build.NUMPY_DOOR)
    paths = {name: _build.find(name) for name in names}
    facts, door = _numpy_door()
    version, autograd, backends = _torch()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "build": _build.record(),
        "objects": {name: str(path) if path else None for name, path in paths.items()},
        "isa_in_use": facts.get("isa_in_use"),
        "numpy_door": door,
        "torch": version,
        "autograd_function": autograd,
        "backends": backends,
        "hardware": {name: list(map(str, passes)) for name, passes in hardware.passes.items()},
    }


def _numpy_door() -> tuple[dict[str, Any], str]:
    try:
        from . import numpy as door

        return door._door().build_facts(), "available"
    except (ImportError, RuntimeError) as error:
        return {}, str(error)


def _torch() -> tuple[str | None, str | None, dict[str, str]]:
    try:
        import torch
    except ImportError as error:
        names = ("cuda", "triton", "cpu", "reference")
        return None, None, dict.fromkeys(names, f"torch cannot be imported: {error}")
    from . import ops
    from ._regime import FEW
    from .backends import BACKENDS

    devices = {"cuda": "cuda", "triton": "cuda"}
    refusals = {
        name: backend.refuses(devices.get(name, "cpu"), torch.float32, torch.float32, FEW)
        for name, backend in BACKENDS.items()
    }
    autograd = f"Python: {ops.autograd_unavailable}" if ops.autograd_unavailable else "C++"
    available = {name: why or "available" for name, why in refusals.items()}
    return torch.__version__, autograd, available


def _lines(key: str, value: Any, indent: int = 0) -> list[str]:
    pad = "  " * indent
    if isinstance(value, dict):
        if not value:
            return [f"{pad}{key}: no record"]
        return [f"{pad}{key}:", *(x for k, v in value.items() for x in _lines(k, v, indent + 1))]
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value)) or "none"
    return [f"{pad}{key}: {'-' if value is None else value}"]


if __name__ == "__main__":
    for name, fact in build_info().items():
        print("\n".join(_lines(name, fact)))
