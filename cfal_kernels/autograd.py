"""The one autograd function in front of every pair of fused operators.

It stands here in Python, for every torch and for tracing, and in csrc/torch/autograd.cpp, which
serves ordinary calls where it was built for the torch and the Python at hand. The two give the
same bits; the one in C++ may make gradients earlier (docs/architecture.md, "One pass over the
features").
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _arguments
from ._arguments import Parameters
from .ops import Operators

_NO_DOUBLE_BACKWARD = (
    "cfal_loss: the compiled kernels have no second derivative; use backend='reference' to "
    "differentiate a gradient of this loss"
)


class FusedLoss(torch.autograd.Function):
    """Saves coefficients of the gradient, never a gradient: a second backward repeats the first."""

    @staticmethod
    def forward(ctx, features, prototypes, target, class_weights, parameters, operators):
        """Returns the loss."""
        centres = prototypes if prototypes.dim() == 3 else prototypes.unsqueeze(1)
        loss, saved = operators.forward(features, centres, target, class_weights, *parameters, True)
        ctx.save_for_backward(features, prototypes, target, class_weights, saved)
        ctx.parameters = parameters
        ctx.operators = operators
        return loss

    @staticmethod
    def backward(ctx, grad):
        """Returns the gradients of features and prototypes in their own dtypes and shapes."""
        # Grad mode is on in a backward only under create_graph=True.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            with torch.no_grad():
                grads = _gradients(ctx, grad)
            sources = (grad, *ctx.saved_tensors[:2])
            grads = [g if g is None else NoSecondDerivative.apply(g, *sources) for g in grads]
        else:
            grads = _gradients(ctx, grad)
        return (*grads, None, None, None, None)


def _gradients(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    features, prototypes, target, class_weights, saved = ctx.saved_tensors
    need_features, need_prototypes, *_ = ctx.needs_input_grad
    flat = prototypes.dim() == 2
    grad_features, grad_prototypes = ctx.operators.backward(
        grad, saved, features, prototypes.unsqueeze(1) if flat else prototypes,
        target, class_weights, *ctx.parameters, need_features, need_prototypes,
    )  # fmt: skip
    if need_prototypes and flat:
        grad_prototypes = grad_prototypes.squeeze(1)
    return grad_features if need_features else None, grad_prototypes if need_prototypes else None


class NoSecondDerivative(torch.autograd.Function):
    """Passes a gradient through and refuses to be differentiated."""

    @staticmethod
    def forward(ctx, grad, *sources):
        """Returns `grad`; `sources` are what a second derivative would be taken of."""
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *_):
        """Raises RuntimeError."""
        raise RuntimeError(_NO_DOUBLE_BACKWARD)


# Function.apply without its Python wrapper, which serves torch.func alone: a small call feels it.
_apply = super(torch.autograd.Function, FusedLoss).apply
_in_transform = torch._C._are_functorch_transforms_active


def apply(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    parameters: Parameters,
    operators: Operators,
) -> Tensor:
    """The loss by a pair of operators, of arguments that have been checked.

    Nothing is saved where nothing needs a gradient.
    """
    arguments = (features, prototypes, target, class_weights, parameters, operators)
    try:
        needs_grad = torch.is_grad_enabled() and (
            features.requires_grad or prototypes.requires_grad
        )
        if torch.compiler.is_compiling():
            if needs_grad:
                return FusedLoss.apply(*arguments)
        elif _in_transform() or forward_ad._current_level >= 0:
            # The autograd function refuses what it cannot differentiate; the operator would not
            # notice.
            return FusedLoss.apply(*arguments)
        elif needs_grad:
            if operators.loss is not None:
                return operators.loss(features, prototypes, target, class_weights, *parameters)
            # In inference mode torch records nothing, even under enable_grad.
            if not torch.is_inference_mode_enabled():
                return _apply(*arguments)
        if prototypes.dim() == 2:
            prototypes = prototypes.unsqueeze(1)
        return operators.forward(features, prototypes, target, class_weights, *parameters, False)[0]
    except RuntimeError as error:
        _arguments.check_layout(
            features=features, prototypes=prototypes, target=target, class_weights=class_weights
        )
        text = str(error)
        if "cfal: target" in text:
            bad = _arguments.bad_target(target, prototypes.shape[0], parameters[6])
            raise (bad or error) from None
        if "are too large" in text:
            raise _arguments.too_large(features, prototypes) from None
        if "functorch" in text or "forward mode AD" in text or "jvp" in text:
            raise RuntimeError(
                "cfal_loss: the compiled kernels take part neither in torch.func transforms (grad, "
                "vmap ...) nor in forward-mode differentiation; backend='reference' serves grad "
                "and vmap"
            ) from error
        raise
