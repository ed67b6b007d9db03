"""The compiled operators: their library, their overloads bound once, their shapes for tracing."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _build
from ._regime import FEW
from .pairwise import compute_dtype


class Operators(NamedTuple):
    """Forward and backward of one backend, with the schemas of csrc/torch/schema.cpp.

    `loss`, where it is there, is an autograd function in C++ in front of them, and `entry` a way to
    it that checks ordinary arguments by itself and answers None to others (csrc/torch/entry.cpp).
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor]]
    loss: Callable[..., Tensor] | None = None
    entry: Callable[..., Tensor | None] | None = None


#: Why the compiled CPU operators are absent, or "" when they are loaded.
unavailable: str = ""
#: Why the operators have no kernels for CUDA tensors, or "" when they have.
cuda_unavailable: str = ""
#: Why the autograd function is the one in Python, or "" when it is the one in C++.
autograd_unavailable: str = ""
#: `torch.ops.cfal.forward.default` and `.backward.default`, or None when the library is absent.
forward = None
backward = None
#: Both, `torch.ops.cfal.loss.default` and its entry or None, as `autograd.apply` takes them.
compiled: Operators | None = None

# Mirrors csrc/core/saved.h, in elements.
_CACHE_BUDGET = 1 << 21
_SCRATCH_BUDGET = 1 << 20
_PAIRS_BUDGET = 1 << 20
_ROW_STATE = 6
_SCALARS = 3


def saved_numel(regime: int, rows: int, prototypes: int, dim: int) -> int:
    """Length of the buffer that the forward saves, from B, K = C M and D alone."""
    if regime == FEW:
        return (rows + prototypes) * (prototypes + 1)
    return saved_numel_many(rows, prototypes, dim)


def saved_numel_many(rows: int, prototypes: int, dim: int) -> int:
    """For many prototypes: state of kept rows and affinities, scalars, pair or moment matrix."""
    wanted = torch.sym_max(64, torch.sym_min(256, rows // 256 * 64))
    block = torch.sym_min(wanted, max(1, _SCRATCH_BUDGET // prototypes))
    kept = torch.sym_min(_CACHE_BUDGET // prototypes // block * block, rows)
    side = prototypes if prototypes <= dim else dim
    matrix = side * side if side * side <= _PAIRS_BUDGET else 0
    return kept * (prototypes + _ROW_STATE) + _SCALARS + matrix


def _load_library(library: Path, needs: str = "") -> str:
    """Loads a shared object of operators and returns why it could not, or "".

    `needs` says what it asks of torch, where that may be the reason.
    """
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return (
            f"{library.name} does not load under torch {torch.__version__}{needs}: "
            f"{str(error).splitlines()[0]}"
        )
    return ""


def _load_cuda() -> str:
    """Adds the kernels for CUDA tensors to the operators and returns why it could not, or "".

    The schemas are the CPU library's: it comes out of every build that the CUDA library comes out
    of, so nothing is gained by a definition in both.
    """
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    library = _build.find(_build.TORCH_CUDA)
    if library is None:
        return _build.why_missing(_build.TORCH_CUDA)
    if unavailable:
        return f"{library.name} adds to operators that are not there: {unavailable}"
    return _load_library(library)


def _load_autograd() -> str | Callable[..., Tensor | None]:
    """Loads the autograd function in C++ and returns its entry, or the reason why it could not.

    It is not on the stable ABI: under another torch or Python than its own it could crash.
    """
    library = _build.find(_build.TORCH_AUTOGRAD)
    if library is None:
        return _build.why_missing(_build.TORCH_AUTOGRAD)
    record = _build.record()
    built = (record.get("torch_headers"), record.get("extension_suffix"))
    here = (torch.__version__, importlib.machinery.EXTENSION_SUFFIXES[0])
    if built != here:
        return (
            f"{library.name} was built for torch {built[0]} and Python's {built[1]}, this is torch "
            f"{here[0]} and {here[1]}"
        )
    if reason := _load_library(library):
        return reason
    spec = importlib.util.spec_from_file_location(_build.TORCH_AUTOGRAD, library)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return f"{library.name} is no module of this Python: {error}"
    return module.loss


def _load() -> str:
    """Loads the CPU library and returns why it could not, or ""."""
    global forward, backward, compiled, autograd_unavailable
    library = _build.find(_build.TORCH_CPU)
    if library is None:
        return _build.why_missing(_build.TORCH_CPU)
    if reason := _load_library(library, " (2.10 or newer is needed)"):
        return reason
    forward = torch.ops.cfal.forward.default
    backward = torch.ops.cfal.backward.default
    entry = _load_autograd()
    if isinstance(entry, str):
        autograd_unavailable = entry
        compiled = Operators(forward, backward)
    else:
        compiled = Operators(forward, backward, torch.ops.cfal.loss.default, entry)
    torch.library.register_fake("cfal::forward", _fake_forward)
    torch.library.register_fake("cfal::backward", _fake_backward)
    torch.library.register_fake("cfal::value_and_grad", _fake_value_and_grad)
    torch.library.register_fake("cfal::squared_distances", _fake_squared_distances)
    torch.library.register_fake("cfal::squared_distances_backward", _fake_distances_backward)
    return ""


def _fake_forward(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    sigma: float,
    margin: float,
    gamma: float,
    diversity_weight: float,
    detach_focal: bool,
    reduction: int,
    ignore_index: int,
    regime: int,
    save: bool,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(features, prototypes)
    rows, dim = features.shape
    count = prototypes.shape[:-1].numel()
    loss = features.new_empty((rows,) if reduction == 0 else (), dtype=dtype)
    numel = saved_numel(regime, rows, count, dim) if save else 0
    return loss, features.new_empty((numel,), dtype=dtype)


def _gradients(
    features: Tensor, prototypes: Tensor, need_features: bool, need_prototypes: bool
) -> tuple[Tensor, Tensor]:
    """Gradients as an operator returns them: empty where not asked for."""
    return (
        features.new_empty(features.shape if need_features else (0,)),
        prototypes.new_empty(prototypes.shape if need_prototypes else (0,)),
    )


def _fake_backward(
    grad_loss: Tensor,
    saved: Tensor,
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    sigma: float,
    margin: float,
    gamma: float,
    diversity_weight: float,
    detach_focal: bool,
    reduction: int,
    ignore_index: int,
    regime: int,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    return _gradients(features, prototypes, need_features, need_prototypes)


def _fake_value_and_grad(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    upstream: float,
    *parameters_and_needs: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *parameters, need_features, need_prototypes = parameters_and_needs
    inputs = (features, prototypes, target, class_weights, *parameters)
    loss, saved = _fake_forward(*inputs, True)
    grads = _fake_backward(loss, saved, *inputs, need_features, need_prototypes)
    return loss, saved, *grads


def _fake_squared_distances(features: Tensor, prototypes: Tensor) -> Tensor:
    shape = (features.shape[0], prototypes.shape[:-1].numel())
    return features.new_empty(shape, dtype=compute_dtype(features, prototypes))


def _fake_distances_backward(
    grad: Tensor,
    features: Tensor,
    prototypes: Tensor,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    return _gradients(features, prototypes, need_features, need_prototypes)


unavailable = _load()
cuda_unavailable = _load_cuda()
