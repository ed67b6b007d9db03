"""The functional form of the loss: checks its arguments and hands them to a backend."""

from __future__ import annotations

from torch import Tensor

from . import backends


def cfal_loss(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
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
) -> Tensor:
    r"""Center-Focused Affinity Loss of a batch.

    With q_ij = min_m |f_i - w_jm|^2, a_ij = exp(-q_ij / sigma) and s_i = a_i,y_i (docs/maths.md has
    all of it):

        loss_i = class_weights[y_i] (1 - s_i)^gamma (sum_{j != y_i} max(0, margin + a_ij - s_i) +
        diversity_weight R)

    where R is the variance of the squared distances between all pairs of centres. Gradients reach
    `features` and `prototypes`, each in its own dtype. Autocast does not downcast this loss: it
    reads half-precision inputs as they are and computes in float32.

    Args:
        features: [B, D], float16, bfloat16, float32 or float64.
        prototypes: [C, D], or [C, M, D] for M centres per class; same dtypes, need not equal that
            of `features`.
        target: [B] class indices, int64 or int32.
        class_weights: [C] or None for ones; no gradient.
        sigma: width of the Gaussian affinity, > 0. It must match the squared distances of the
            embedding, which grow with D: see `sigma_from_features`.
        margin: margin of the hinge.
        gamma: exponent of the focal factor, >= 0; 0 switches it off.
        diversity_weight: weight of R.
        detach_focal: treat the focal factor as a constant in the gradient, as the authors' code
            does.
        reduction: "mean" over the rows that count, "sum", or "none".
        ignore_index: rows with this target contribute nothing, whatever they hold.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; see `explain`.

    Returns:
        A scalar, or [B] for ``reduction="none"``; float32, float64 if an input is float64. The mean
        over no rows is NaN, as in torch's cross_entropy. NaN or inf in a row gives NaN.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not fit, a hyperparameter or (on the CPU) a target out
            of range. Inside a compiled graph a target out of range is a RuntimeError.
        RuntimeError: an explicit `backend` that cannot serve the call.

    Example:
        >>> features = torch.randn(32, 128, requires_grad=True)
        >>> prototypes = torch.randn(9, 128, requires_grad=True)
        >>> loss = cfal_loss(features, prototypes, torch.randint(9, (32,)), sigma=256.0)
        >>> loss.backward()
    """
    return backends.loss(
        backend, features, prototypes, target, class_weights,
        sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index,
    )  # fmt: skip
