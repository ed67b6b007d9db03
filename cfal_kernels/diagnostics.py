"""One-time warnings about the silent failures of a loss with parameters, and their off switch.

Turn them off with ``warnings.filterwarnings("ignore", category=cfal.CFALWarning)``, with
`silence()`, or with the environment variable ``CFAL_SILENCE=1``. This module needs no torch to be
imported.
"""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: exp(-LEAST_RATIO) = 1e-6: the affinity below which a batch is called unreachable.
LEAST_RATIO = 13.815510557964274
#: Training forwards after which a module stops looking.
WATCHED_FORWARDS = 32
_SAMPLED_ROWS = 256
_SAMPLED_CENTRES = 4096
# Packages whose frames stand between a warning and the line that a user can change.
_INNER = ("cfal_kernels", "torch")

_silent = os.environ.get("CFAL_SILENCE", "0") not in ("", "0")
_said: set[str] = set()


class CFALWarning(UserWarning):
    """Everything this package warns about."""


def silence(silent: bool = True) -> None:
    """Turns the warnings of this package off for the process (on again with ``silence(False)``).

    Example:
        >>> import cfal_kernels as cfal
        >>> cfal.diagnostics.silence()
    """
    global _silent
    _silent = silent


def warn(message: str) -> None:
    """Emits a `CFALWarning` that points at the caller of this package, unless silenced."""
    if _silent:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _INNER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, CFALWarning, stacklevel=level)


def warn_once(key: str, message: str) -> None:
    """Emits a `CFALWarning` the first time this process sees `key`."""
    if key not in _said:
        _said.add(key)
        warn(message)


def warn_if_weights_are_flat(
    weights: torch.Tensor, class_counts: torch.Tensor, beta: float
) -> None:
    """Warns when weights are all within 1 % of 1 although the classes differ in size."""
    uneven = class_counts.max() > 1.1 * class_counts.min()
    if uneven and float((weights - 1.0).abs().max()) < 0.01:
        warn(
            f"class_counts with beta = {beta} give class weights within 1 % of 1: they have no "
            f"effect. 1 / (1 - beta) should exceed the smallest class count; try a beta closer to "
            f"1.",
        )


class TrainingWatch:
    """Looks at the first training forwards of one loss module; `step` returns whether to go on.

    - first forward: is every affinity of the batch below 1e-6; is torch.distributed running with
      nobody to synchronise prototypes that the loss owns;
    - later forwards: did backward run without any optimizer changing the prototypes. Gradient
      accumulation looks the same from here, so a few parameters upstream of the features serve as a
      clock: only when one of them was updated and the prototypes were not is the verdict certain.
      Without such parameters (precomputed features) it waits for the last forward it looks at, and
      says that it cannot be sure.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._version = 0
        self._sample: torch.Tensor | None = None
        self._clock: list[tuple[weakref.ref[torch.Tensor], int]] = []

    def __reduce__(self) -> tuple:
        return TrainingWatch, ()

    def step(
        self, features: torch.Tensor, prototypes: torch.Tensor, sigma: float, owns_prototypes: bool
    ) -> bool:
        """One training forward. Returns whether to call again."""
        self._seen += 1
        if self._seen == 1:
            warn_if_unreachable(features, prototypes, sigma)
            if owns_prototypes:
                warn_if_not_synchronised(prototypes)
            if not prototypes.requires_grad or not prototypes.is_leaf:
                return False
            self._version = prototypes._version
            self._sample = _sample(prototypes)
            self._clock = _upstream_parameters(features, prototypes)
            return True
        if prototypes._version != self._version:
            self._forget()
            return False
        if self._seen > 2 and prototypes.grad is not None and self._due():
            if not _same(self._sample, _sample(prototypes)):
                self._forget()
                return False
            finding = (
                "although backward ran and a layer before them was updated: probably no optimizer "
                "holds them."
                if self._clock
                else f"in {self._seen} training forwards although backward ran: unless gradients "
                f"are accumulated over more batches than that, no optimizer holds them."
            )
            warn(
                f"the prototypes of this CFAL loss have not changed {finding} Pass the parameters "
                f"of the loss to the optimizer, e.g. torch.optim.AdamW([*model.parameters(), "
                f"*loss.parameters()]), or let the model own them: CFALLoss.from_head(model.head) "
                f"with a PrototypeHead.",
            )
            self._forget()
            return False
        if self._seen < WATCHED_FORWARDS:
            return True
        self._forget()
        return False

    def _due(self) -> bool:
        if not self._clock:
            return self._seen >= WATCHED_FORWARDS
        alive = [(ref(), version) for ref, version in self._clock]
        return any(p is not None and p._version != version for p, version in alive)

    def _forget(self) -> None:
        self._sample = None
        self._clock = []


def warn_if_unreachable(features: torch.Tensor, prototypes: torch.Tensor, sigma: float) -> None:
    """Warns when exp(-q / sigma) < 1e-6 for all rows and classes (of a sample, if many)."""
    import torch

    with torch.no_grad():
        if features.device.type == "meta" or features.shape[0] == 0:
            return
        f = features[:: -(-features.shape[0] // _SAMPLED_ROWS)]
        w = prototypes.reshape(-1, prototypes.shape[-1])
        w = w[:: -(-w.shape[0] // _SAMPLED_CENTRES)]
        with torch.autocast(features.device.type, enabled=False):
            q = torch.cdist(f.float(), w.float()).square()
        nearest = q.amin(dim=1)
        unreachable, typical = torch.stack((nearest.min(), nearest.median())).tolist()
    if unreachable > LEAST_RATIO * sigma:
        warn(
            f"every affinity of the first batch is below 1e-6: sigma = {sigma:g} is too small for "
            f"this embedding, whose squared distance to the nearest prototype is about "
            f"{typical:.3g}, and hardly any gradient will flow. Use sigma near {typical:.2g}, or "
            f"normalise the features; see sigma_from_features and initialize_prototypes_.",
        )


def warn_if_not_synchronised(prototypes: torch.Tensor) -> None:
    """Warns when several processes train and nothing averages the gradient of these prototypes."""
    import torch

    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    # DDP sets the active module for the time of its forward; sharded parameters are DTensors or
    # flagged by FSDP.
    active = getattr(torch.nn.parallel.DistributedDataParallel, "_get_active_ddp_module", None)
    if active is None or active() is not None:
        return
    if hasattr(prototypes, "device_mesh") or hasattr(prototypes, "_fsdp_flattened"):
        return
    if not prototypes.requires_grad:
        return
    warn(
        f"torch.distributed runs with {dist.get_world_size()} processes, but this CFAL loss owns "
        f"its prototypes and was called outside DistributedDataParallel: the ranks will drift "
        f"apart. Put a PrototypeHead into the wrapped model and use CFALLoss.from_head(head), or "
        f"wrap the loss: DistributedDataParallel(loss).",
    )


def _sample(prototypes: torch.Tensor) -> torch.Tensor:
    flat = prototypes.detach().reshape(-1)
    return flat[:: -(-flat.numel() // 1024)].clone()


def _same(before: torch.Tensor | None, after: torch.Tensor) -> bool:
    # Optimizers that write through `.data` leave the version counter alone: the values decide.
    return before is not None and before.shape == after.shape and bool((before == after).all())


def _upstream_parameters(
    features: torch.Tensor, prototypes: torch.Tensor, limit: int = 16
) -> list[tuple[weakref.ref[torch.Tensor], int]]:
    """Up to `limit` leaves of the graph behind `features`, nearest first, with their versions."""
    found: list[tuple[weakref.ref[torch.Tensor], int]] = []
    queue = [features.grad_fn] if features.grad_fn is not None else []
    visited = set(queue)
    for node in queue:
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not prototypes:
            found.append((weakref.ref(leaf), leaf._version))
            if len(found) == limit:
                break
        for following, _ in node.next_functions:
            if following is not None and following not in visited and len(visited) < 1000:
                visited.add(following)
                queue.append(following)
    return found
