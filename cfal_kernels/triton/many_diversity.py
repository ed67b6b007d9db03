"""The diversity term of many prototypes, by float64 products of torch (docs/maths.md).

For K > D the closed form from second moments [D, D], for K <= D all pairs, some rows of [K, K] at a
time. Everything is about the mean, on the device, with no synchronisation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Elements of [K, K] that are formed at a time.
BLOCK_BUDGET = 1 << 20


def value(prototypes: Tensor) -> Tensor:
    """R of [C, M, D] prototypes, a float64 scalar.

    Example:
        >>> value(torch.tensor([[[0.0]], [[1.0]], [[3.0]]]))  # pairs at 1, 4 and 9
        tensor(10.8889, dtype=torch.float64)
    """
    x = _centred(prototypes)
    count, dim = x.shape
    pairs = count * (count - 1) / 2
    n = x.square().sum(1)
    total = n.sum()
    if count > dim:
        # P R = K sum e^2 + 2 |N|^2 + 2 t S
        e, moments, t = _moments(x, n, total)
        return (count * e.square().sum() + 2.0 * moments.square().sum() + 2.0 * t * total) / pairs
    squares = [deviation.square().sum() for _, _, deviation in _deviations(x, n, total)]
    return torch.stack(squares).sum() / (2.0 * pairs)


def gradient(prototypes: Tensor) -> Tensor:
    """dR/dw [K, D] of [C, M, D] prototypes, float64.

    Example:
        >>> gradient(torch.tensor([[[0.0]], [[1.0]], [[3.0]]])).sum().abs() < 1e-12
        tensor(True)
    """
    x = _centred(prototypes)
    count, dim = x.shape
    pairs = count * (count - 1) / 2
    n = x.square().sum(1)
    total = n.sum()
    if count > dim:
        # (4 / P) ((K e_j + 2 t) x_j - sum_k e_k x_k + 2 N x_j)
        e, moments, t = _moments(x, n, total)
        slope = torch.addmm((count * e + 2.0 * t)[:, None] * x, x, moments, alpha=2.0)
        return (slope - e @ x).mul_(4.0 / pairs)
    # (4 / P) sum_k (D_jk - mu) (w_j - w_k)
    slope = torch.empty_like(x)
    for i, j, deviation in _deviations(x, n, total):
        torch.mm(deviation, x, out=slope[i:j])
        slope[i:j].neg_().add_(deviation.sum(1, keepdim=True) * x[i:j])
    return slope.mul_(4.0 / pairs)


def _centred(prototypes: Tensor) -> Tensor:
    w = prototypes.flatten(0, 1).double()
    return w - w.mean(0)


def _moments(x: Tensor, n: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e_j = n_j - S / K [K], N = X^T X - (S / D) I [D, D], and t = S (1 / D - 1 / (K - 1))."""
    count, dim = x.shape
    moments = x.T @ x
    moments.diagonal().sub_(total / dim)
    return n - total / count, moments, total * (1.0 / dim - 1.0 / (count - 1))


def _deviations(x: Tensor, n: Tensor, total: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(i, j, rows i to j of D_jk - mu), 0 on the diagonal, which is no pair; P mu = K S."""
    count = x.shape[0]
    mu = 2.0 * total / (count - 1)
    step = max(1, BLOCK_BUDGET // count)
    for i in range(0, count, step):
        j = min(i + step, count)
        deviation = torch.mm(x[i:j], x.T).mul_(-2.0).add_(n[i:j, None] - mu).add_(n)
        deviation.diagonal(i).zero_()
        yield i, j, deviation
