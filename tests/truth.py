"""The loss and its gradients in long double, straight from docs/maths.md: what kernels are held to.

Every quantity is formed as it is defined, from differences of all rows and prototypes. On x86-64 a
long double carries 64 bits of mantissa: its error is out of sight of float64's last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

LONG = np.longdouble

requires_long_double = pytest.mark.skipif(
    np.finfo(LONG).eps > 1e-18, reason="this platform's long double is float64"
)


@dataclass(frozen=True)
class Truth:
    """Loss per row [B] and, for the upstream gradient given, both gradients; float64 tensors."""

    loss: torch.Tensor
    grad_features: torch.Tensor
    grad_prototypes: torch.Tensor


def long(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy().astype(LONG)


def diversity(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R, and dR/dw_j = (4 / P) sum_k (D_jk - mu)(w_j - w_k), of w [K, D]."""
    count = len(w)
    if count < 3:
        return LONG(0), np.zeros_like(w)
    pairs = count * (count - 1) // 2
    distances = np.stack([((w - row) ** 2).sum(1) for row in w])
    mu = distances.sum() / (2 * pairs)
    deviation = distances - mu
    np.fill_diagonal(deviation, 0)
    grad = np.stack([(d[:, None] * (row - w)).sum(0) for d, row in zip(deviation, w, strict=True)])
    return (deviation**2).sum() / (2 * pairs), 4 * grad / pairs


def truth(
    features: torch.Tensor,
    prototypes: torch.Tensor,
    target: torch.Tensor,
    upstream: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    sigma: float = 130.0,
    margin: float = 0.1,
    gamma: float = 2.0,
    diversity_weight: float = 1.0,
    detach_focal: bool = False,
    ignore_index: int = -100,
) -> Truth:
    """Loss per row and the gradients of sum_i upstream_i loss_i; prototypes [C, M, D]."""
    f, w3, g = long(features), long(prototypes), long(upstream)
    classes, centres, dim = w3.shape
    w = w3.reshape(-1, dim)
    omega = np.ones(classes, LONG) if class_weights is None else long(class_weights)
    sigma, margin, gamma, rho = LONG(sigma), LONG(margin), LONG(gamma), LONG(diversity_weight)
    R, grad_R = diversity(w) if rho != 0 else (LONG(0), np.zeros_like(w))
    loss = np.zeros(len(f), LONG)
    grad_f, grad_w = np.zeros_like(f), np.zeros_like(w)
    for i, y in enumerate(target.tolist()):
        if y == ignore_index:
            continue
        difference = f[i] - w  # [K, D]
        q = (difference**2).sum(1).reshape(classes, centres)
        nearest = q.argmin(1) + np.arange(classes) * centres
        q = q.min(1)
        a = np.exp(-q / sigma)
        h = np.maximum(margin + a - a[y], 0)
        h[y] = 0
        total, base = h.sum() + rho * R, -np.expm1(-q[y] / sigma)
        m = omega[y] * (base**gamma if gamma > 0 else LONG(1))
        slope = np.where(h > 0, m, LONG(0))  # dl/da_ij
        slope[y] = -m * (h > 0).sum()
        if gamma > 0 and base > 0 and not detach_focal:
            slope[y] -= omega[y] * gamma * base ** (gamma - 1) * total
        loss[i] = m * total
        pulls = (2 / sigma * a * slope * g[i])[:, None] * difference[nearest]
        grad_f[i] = -pulls.sum(0)
        grad_w[nearest] += pulls
        grad_w += g[i] * rho * m * grad_R
    return Truth(*(_double(x) for x in (loss, grad_f, grad_w.reshape(w3.shape))))


def _double(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x).astype(np.float64))
