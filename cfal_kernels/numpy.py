"""The loss and its gradients on NumPy arrays, by the same kernels, without torch.

A second door into the compiled core: for tests, and for people who do not use torch.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _build, _checks, _regime


@cache
def _door() -> ModuleType:
    try:
        from ._lib import _numpy_door
    except ImportError as error:
        reason = f"it does not load: {error}"
        if _build.find(_build.NUMPY_DOOR) is None:
            reason = _build.why_missing(_build.NUMPY_DOOR)
        raise RuntimeError(f"cfal_kernels.numpy is not available: {reason}") from error
    return _numpy_door


def cfal_loss(
    features: ArrayLike,
    prototypes: ArrayLike,
    target: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    sigma: float = 130.0,
    margin: float = 0.1,
    gamma: float = 2.0,
    diversity_weight: float = 1.0,
    detach_focal: bool = False,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> NDArray:
    """Center-Focused Affinity Loss of NumPy arrays; see `cfal_kernels.cfal_loss` for the formula.

    Args:
        features: [B, D], float32 or float64, any strides.
        prototypes: [C, D] or [C, M, D], same dtypes, need not equal that of `features`.
        target: [B] class indices, int64 or int32.
        class_weights: [C] or None for ones.
        sigma: width of the affinity, > 0.
        margin: margin of the hinge.
        gamma: exponent of the focal factor, >= 0.
        diversity_weight: weight of the diversity term.
        detach_focal: has no effect on the value.
        reduction: "mean", "sum" or "none".
        ignore_index: target of the rows to leave out.

    Returns:
        An array of shape [] ([B] for ``reduction="none"``), float32, float64 if an input is
        float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit, a hyperparameter or a target out of range.
        RuntimeError: the compiled module is not part of this build.

    Example:
        >>> features, prototypes = np.random.randn(32, 128), np.random.randn(9, 128)
        >>> cfal_loss(features, prototypes, np.random.randint(9, size=32), sigma=256.0)
    """
    call = _Call(
        features, prototypes, target, class_weights,
        sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index,
    )  # fmt: skip
    return call.loss()


def cfal_loss_and_grad(
    features: ArrayLike,
    prototypes: ArrayLike,
    target: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    sigma: float = 130.0,
    margin: float = 0.1,
    gamma: float = 2.0,
    diversity_weight: float = 1.0,
    detach_focal: bool = False,
    reduction: str = "mean",
    ignore_index: int = -100,
    grad_output: ArrayLike | None = None,
) -> tuple[NDArray, NDArray, NDArray]:
    """The loss and its gradients with respect to features and prototypes.

    Args:
        features: as in `cfal_loss`, like everything that is not named here.
        prototypes: [C, D] or [C, M, D].
        target: [B].
        class_weights: [C] or None.
        sigma: width.
        margin: margin.
        gamma: focus.
        diversity_weight: weight of the diversity term.
        detach_focal: treat the focal factor as a constant in the gradient.
        reduction: "mean", "sum" or "none".
        ignore_index: target of the rows to leave out.
        grad_output: gradient of what follows with respect to the loss, of the loss' shape; ones if
            not given.

    Returns:
        ``(loss, grad_features, grad_prototypes)``, the gradients in the shape and dtype of their
        inputs.

    Raises:
        TypeError, ValueError, RuntimeError: as `cfal_loss`.

    Example:
        >>> loss, grad_features, grad_prototypes = cfal_loss_and_grad(features, prototypes, target)
    """
    call = _Call(
        features, prototypes, target, class_weights,
        sigma, margin, gamma, diversity_weight, detach_focal, reduction, ignore_index,
    )  # fmt: skip
    return call.loss_and_grad(grad_output)


class _Call:
    """One call with its arguments checked and in the form that the compiled module takes."""

    def __init__(
        self,
        features: ArrayLike,
        prototypes: ArrayLike,
        target: ArrayLike,
        class_weights: ArrayLike | None,
        sigma: Any,
        margin: Any,
        gamma: Any,
        diversity_weight: Any,
        detach_focal: Any,
        reduction: Any,
        ignore_index: Any,
    ) -> None:
        hyperparameters = _checks.hyperparameters(sigma, margin, gamma, diversity_weight)
        detach_focal = _checks.flag("detach_focal", detach_focal)
        self.reduction = _checks.reduction_code(reduction)
        ignore_index = _checks.whole_number("ignore_index", ignore_index)
        f = _floats("features", features)
        w = _floats("prototypes", prototypes)
        y = _indices(target)
        omega = None if class_weights is None else _floats("class_weights", class_weights)
        _checks.shapes(f.shape, w.shape, y.shape, None if omega is None else omega.shape)
        bad = np.flatnonzero(((y < 0) | (y >= len(w))) & (y != ignore_index))
        if len(bad):
            position = int(bad[0])
            raise ValueError(
                _checks.target_out_of_range(int(y[position]), position, len(w), ignore_index)
            )
        self.prototypes_shape = w.shape
        self.dtype = np.result_type(f.dtype, w.dtype)
        centres = w.reshape(len(w), -1, w.shape[-1])
        self.tensors = (f, centres, y, omega)
        regime = _regime.of(centres.shape[0] * centres.shape[1])
        self.parameters = (*hyperparameters, detach_focal, self.reduction, ignore_index, regime)

    def loss(self) -> NDArray:
        return _door().forward(*self.tensors, *self.parameters)

    def loss_and_grad(self, grad_output: ArrayLike | None) -> tuple[NDArray, NDArray, NDArray]:
        upstream = self._upstream(grad_output)
        loss, grad_f, grad_w = _door().value_and_grad(upstream, *self.tensors, *self.parameters)
        return loss, grad_f, grad_w.reshape(self.prototypes_shape)

    def _upstream(self, grad_output: ArrayLike | None) -> NDArray:
        """`grad_output` in the compute dtype and the shape of the loss."""
        shape = self.tensors[0].shape[:1] if self.reduction == 0 else ()
        if grad_output is None:
            return np.ones(shape, self.dtype)
        given = _floats("grad_output", grad_output)
        if given.shape != shape:
            raise ValueError(
                f"grad_output must have the shape {list(shape)} of the loss, got "
                f"{list(given.shape)}"
            )
        return given.astype(self.dtype)


def _floats(name: str, value: ArrayLike) -> NDArray:
    """`value` as a contiguous, aligned array of native float32 or float64."""
    array = np.asarray(value)
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise TypeError(
            f"{name} must be float32 or float64, got {array.dtype}; convert it with "
            f"{name}.astype(np.float32)"
        )
    # Not ascontiguousarray, which makes a 0-d array 1-d.
    return np.require(array, array.dtype.newbyteorder("="), ["C", "ALIGNED"])


def _indices(target: ArrayLike) -> NDArray:
    array = np.asarray(target)
    if array.dtype.kind != "i" or array.dtype.itemsize not in (4, 8):
        raise TypeError(
            f"target must hold class indices as int64 (or int32), got {array.dtype}; convert it "
            f"with target.astype(np.int64)"
        )
    return np.require(array, np.int64, ["C", "ALIGNED"])
