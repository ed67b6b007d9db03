"""Which backend serves a call, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import _arguments, _regime, autograd, hardware, ops, reference
from ._arguments import Parameters
from .diagnostics import warn_once
from .triton import availability


@dataclass(frozen=True)
class Backend:
    """One way to compute the loss.

    Attributes:
        name: what `backend=` calls it.
        refuses: (device type, features dtype, prototypes dtype, regime) to the reason why not, ""
            if it serves the call.
        run: the loss of arguments that `_arguments.check` has passed.
    """

    name: str
    refuses: Callable[[str, torch.dtype, torch.dtype, int], str]
    run: Callable[..., Tensor]


def _cpu_refuses(device: str, features: torch.dtype, prototypes: torch.dtype, regime: int) -> str:
    if ops.unavailable:
        return ops.unavailable
    if device not in ("cpu", "meta"):
        return f"the tensors are on {device}, not on the CPU"
    return ""


def _cuda_refuses(device: str, features: torch.dtype, prototypes: torch.dtype, regime: int) -> str:
    if ops.cuda_unavailable:
        return ops.cuda_unavailable
    if device != "cuda":
        return f"the tensors are on {device}, not on a CUDA device"
    if regime != _regime.FEW:
        return (
            f"the CUDA kernels serve up to {_regime.few_limit} prototypes (classes times centres); "
            f"more are served on the GPU by the Triton kernels only"
        )
    return ""


def _reference_refuses(
    device: str, features: torch.dtype, prototypes: torch.dtype, regime: int
) -> str:
    return ""


def _run_compiled(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    parameters: Parameters,
) -> Tensor:
    return autograd.apply(features, prototypes, target, class_weights, parameters, ops.compiled)


#: In the order in which `auto` prefers them.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("cuda", _cuda_refuses, _run_compiled),
        Backend("triton", availability.refuses, availability.run),
        Backend("cpu", _cpu_refuses, _run_compiled),
        Backend("reference", _reference_refuses, reference.run),
    )
}
_CPU = BACKENDS["cpu"]
_FALLBACK = BACKENDS["reference"]


def check_name(name: Any) -> None:
    """Raises TypeError or ValueError unless `name` is "auto" or a backend."""
    if not isinstance(name, str):
        raise TypeError(f"backend must be a string, got {type(name).__name__}")
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(['auto', *BACKENDS])}, got {name!r}")


def choose(name: str, features: Tensor, prototypes: Tensor, regime: int) -> Backend:
    """The backend that serves a checked call.

    Raises:
        ValueError: `name` is no backend.
        RuntimeError: the backend asked for cannot serve the call; the message says why.
    """
    facts = (features.device.type, features.dtype, prototypes.dtype, regime)
    if name == "auto":
        for backend in BACKENDS.values():
            if not backend.refuses(*facts) and not hardware.withheld(backend.name, regime):
                return backend
    check_name(name)
    reason = BACKENDS[name].refuses(*facts)
    if reason:
        raise RuntimeError(
            f"backend={name!r} cannot serve this call: {reason}. backend='auto' takes the best "
            f"that can."
        )
    return BACKENDS[name]


def loss(name: Any, *arguments: Any) -> Tensor:
    """Checks a call and runs it: what `cfal_loss` and `CFALLoss` share.

    `arguments` are those of `_arguments.check`.
    """
    operators = ops.compiled
    if (
        not torch.compiler.is_compiling()
        and operators is not None
        and operators.entry is not None
        and (name == "auto" or name == "cpu")
        and not ops.unavailable
    ):
        # The checks below in C++, for calls with nothing to say about; None for every other.
        value = operators.entry(*arguments, _regime.few_limit)
        if value is not None:
            return value
    class_weights, parameters = _arguments.check(*arguments)
    return run(name, *arguments[:3], class_weights, parameters)


def run(
    name: str,
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    parameters: Parameters,
) -> Tensor:
    """Chooses and runs; `auto` says once when only the reference is left."""
    # What `choose` would answer for the common call, without its walk.
    if (name == "auto" or name == "cpu") and not ops.unavailable and features.is_cpu:
        return autograd.apply(features, prototypes, target, class_weights, parameters, ops.compiled)
    regime = parameters[-1]
    backend = choose(name, features, prototypes, regime)
    device = features.device.type
    silent = device == "meta" or torch.compiler.is_compiling()
    if name == "auto" and backend is _FALLBACK and not silent:
        reason = _why_slow(device, features.dtype, prototypes.dtype, regime)
        warn_once(
            f"fallback:{device}",
            f"cfal_loss runs on the slow reference implementation: {reason}. See "
            f"cfal_kernels.explain(...); backend='reference' asks for it without this warning.",
        )
    return backend.run(features, prototypes, target, class_weights, parameters)


def _why_slow(*facts: Any) -> str:
    """Why no kernels serve a call that `auto` leaves to the reference, for each that might have."""
    names = hardware.RECORDED if facts[0] == "cuda" else ("cpu",)
    reasons = {n: BACKENDS[n].refuses(*facts) or hardware.withheld(n, facts[-1]) for n in names}
    if len(reasons) == 1:
        return reasons.popitem()[1]
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


@dataclass(frozen=True)
class Explanation:
    """Which backend serves a call, and why the others do not.

    Attributes:
        backend: the name of the serving backend.
        regime: "few" or "many": which kernels the number of centres selects.
        reasons: for every other backend, why it does not serve.
    """

    backend: str
    regime: str
    reasons: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"served by {self.backend} ({self.regime} prototypes)"]
        lines += [f"  not {name}: {reason}" for name, reason in self.reasons.items()]
        return "\n".join(lines)


def explain(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor | None = None,
    *,
    class_weights: Tensor | None = None,
    sigma: float = 130.0,
    margin: float = 0.1,
    gamma: float = 2.0,
    diversity_weight: float = 1.0,
    detach_focal: bool = False,
    reduction: str = "mean",
    ignore_index: int = -100,
    backend: str = "auto",
) -> Explanation:
    """Says which backend would serve ``cfal_loss`` with these arguments; computes nothing.

    Args:
        features: as in `cfal_kernels.cfal_loss`, like everything that follows.
        prototypes: [C, D] or [C, M, D].
        target: may be left out.
        class_weights: [C] or None.
        sigma: width.
        margin: hinge margin.
        gamma: focus.
        diversity_weight: weight of R.
        detach_focal: whether the focal factor is a constant for the gradient.
        reduction: "mean", "sum" or "none".
        ignore_index: target of the rows to leave out.
        backend: the backend asked for.

    Returns:
        An `Explanation`; ``print`` it to read it.

    Raises:
        TypeError, ValueError, RuntimeError: as ``cfal_loss`` would.

    Example:
        >>> print(explain(torch.zeros(4, 8), torch.zeros(2, 8), backend="reference"))   # doctest:
        +ELLIPSIS served by reference (few prototypes)
        ...
    """
    if target is None and isinstance(features, Tensor):
        _arguments.check_layout(features=features)
        target = torch.empty(features.shape[:1], dtype=torch.int64, device=features.device)
    _, (*_, regime) = _arguments.check(
        features, prototypes, target, class_weights,
        sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index,
    )  # fmt: skip
    _arguments.check_layout(
        features=features, prototypes=prototypes, target=target, class_weights=class_weights
    )
    serving = choose(backend, features, prototypes, regime)
    facts = (features.device.type, features.dtype, prototypes.dtype, regime)
    reasons = {}
    for name, other in BACKENDS.items():
        if name != serving.name:
            able = "the call asks for"
            withheld = ""
            if backend == "auto":
                able, withheld = "auto prefers", hardware.withheld(name, regime)
            reason = other.refuses(*facts) or withheld
            reasons[name] = reason or f"it could, but {able} {serving.name}"
    return Explanation(serving.name, _regime.NAMES[regime], reasons)
