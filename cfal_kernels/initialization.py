"""Where prototypes start, and how wide the affinity should be."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import _arguments, _checks
from .distance import squared_distances

_LLOYD_STEPS = 10


def authors_(prototypes: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fills prototypes [C, M, D] in place as the authors do: normal with std sqrt(2 / C)."""
    with torch.no_grad():
        return prototypes.normal_(0.0, math.sqrt(2.0 / prototypes.shape[0]), generator=generator)


@torch.no_grad()
def initialize_prototypes_(module: nn.Module, features: Tensor, target: Tensor) -> nn.Module:
    """Moves the prototypes of a loss or head to the class means of a batch of features, in place.

    With M > 1 centres per class, each class is cut into M clusters (farthest-first start, then
    Lloyd's algorithm; deterministic) and their means are taken. A class with fewer than M rows
    keeps the centres it has no rows for.

    Args:
        module: a `CFALLoss` or `PrototypeHead`: anything with `.prototypes` [C, M, D].
        features: [N, D] embeddings of training samples; some hundred per class are enough.
        target: [N] class indices; rows outside [0, C) are left out.

    Returns:
        `module`.

    Raises:
        TypeError: `module` has no prototypes, or a dtype is wrong.
        ValueError: shapes that do not fit.

    Example:
        >>> head = cfal.PrototypeHead(128, 9)
        >>> cfal.initialize_prototypes_(head, features, target)
    """
    prototypes = getattr(module, "prototypes", None)
    if not isinstance(prototypes, Tensor):
        raise TypeError(
            f"module must have .prototypes, as CFALLoss and PrototypeHead do; got "
            f"{type(module).__name__}"
        )
    _arguments.check_inference(features, prototypes, target)
    # A row that is NaN or inf would make the mean of its class so.
    usable = features.isfinite().all(1)
    features, target = features[usable].to(torch.float32), target[usable]
    for label, centres in enumerate(prototypes):
        rows = features[target == label]
        found = _clusters(rows, min(centres.shape[0], len(rows)))
        centres[: len(found)] = found.to(centres)
    return module


def _clusters(rows: Tensor, count: int) -> Tensor:
    """The means of `count` clusters of rows [N, D], N >= count."""
    if count == 0:
        return rows[:0]
    if count == 1:
        return rows.mean(0, keepdim=True)
    chosen = [squared_distances(rows, rows.mean(0, keepdim=True))[:, 0].argmax()]
    for _ in range(count - 1):
        gap = squared_distances(rows, rows[torch.stack(chosen)]).amin(1)
        chosen.append(gap.argmax())
    centres = rows[torch.stack(chosen)]
    for _ in range(_LLOYD_STEPS):
        nearest = squared_distances(rows, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


@torch.no_grad()
def sigma_from_features(
    features: Tensor,
    target: Tensor | None = None,
    *,
    prototypes: Tensor | None = None,
    affinity: float = 0.5,
) -> float:
    """A width sigma that fits an embedding: the typical affinity to a centre becomes `affinity`.

    sigma = median(q) / log(1 / affinity), with q the squared distances between rows and the centres
    of all classes. At affinity 0.5 this is how the authors' sigma = 130 stands to their initial
    prototypes at D = 128; a fixed sigma is too narrow in wider embeddings and its affinities
    vanish.

    Args:
        features: [N, D] embeddings; a few thousand rows are enough.
        target: [N] class indices: the centres are the class means. Exactly one of `target` and
            `prototypes`.
        prototypes: [C, D] or [C, M, D]: the centres.
        affinity: in (0, 1).

    Returns:
        sigma, > 0.

    Raises:
        TypeError, ValueError: wrong arguments; features that are all equal to their centres.

    Example:
        >>> sigma = sigma_from_features(features, target)
        >>> loss = CFALLoss(9, 128, sigma=sigma)
    """
    if (target is None) == (prototypes is None):
        raise ValueError("sigma_from_features needs exactly one of target and prototypes")
    affinity = _checks.real("affinity", affinity)
    if not 0.0 < affinity < 1.0:
        raise ValueError(f"affinity must be in (0, 1), got {affinity!r}")
    if prototypes is None:
        prototypes = _class_means(features, target)
    q = squared_distances(features, prototypes)
    q = q[q.isfinite()]
    typical = q.median().item() if q.numel() else 0.0
    if not typical > 0.0:
        raise ValueError(
            f"features [{features.shape[0]}, {features.shape[1]}] have no spread around the "
            f"centres: the median squared distance is {typical:g}"
        )
    return typical / -math.log(affinity)


def _class_means(features: Tensor, target: Tensor) -> Tensor:
    _arguments.check_inference(features, target=target)
    counted = (target >= 0) & features.isfinite().all(1)
    rows, labels = features[counted].to(torch.float32), target[counted].long()
    if len(labels) == 0:
        raise ValueError(
            f"target [{len(target)}] holds no class index >= 0 with finite features: there is no "
            f"class mean"
        )
    _, labels = labels.unique(return_inverse=True)
    classes = int(labels.max()) + 1
    sums = rows.new_zeros(classes, rows.shape[1]).index_add_(0, labels, rows)
    return sums / torch.bincount(labels, minlength=classes)[:, None]
