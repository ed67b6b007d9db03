"""Whether the Triton kernels can serve a call, and the operators on first use."""

from __future__ import annotations

import functools
import importlib.util
import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import autograd
from . import interpreter

if TYPE_CHECKING:
    from .._arguments import Parameters


@functools.cache
def _why_not_imported() -> str:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install 'cfal-kernels[triton]')"
    return ""


def refuses(device: str, features: torch.dtype, prototypes: torch.dtype, regime: int) -> str:
    """Why the Triton kernels do not serve tensors of this device, dtypes and regime, or "".

    Asks only whether triton is installed; it is imported with the first call that runs.

    Example:
        >>> "TRITON_INTERPRET" in refuses("cpu", torch.float32, torch.float32, 0)
        True
    """
    if reason := _why_not_imported():
        return reason
    if device == "cpu" and interpreter.enabled():
        return ""
    if device == "meta":
        return ""
    if device != "cuda":
        return (
            f"the tensors are on {device}, not on a CUDA device (on the CPU the kernels run under "
            f"TRITON_INTERPRET=1 alone)"
        )
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return ""


def run(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    parameters: Parameters,
) -> Tensor:
    """The loss by the Triton operators, of arguments that have been checked."""
    module = sys.modules.get(f"{__package__}.operators")
    if module is None:
        from . import operators as module
    return autograd.apply(
        features, prototypes, target, class_weights, parameters, module.OPERATORS
    )  # fmt: skip
