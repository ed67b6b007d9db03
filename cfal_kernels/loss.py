"""The loss as modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import _arguments, _checks, backends, diagnostics
from .distance import squared_distances
from .head import PrototypeHead
from .initialization import authors_
from .weights import check_beta, check_class_weights, check_counts, class_balanced_weights


class CFALLoss(nn.Module):
    """Center-Focused Affinity Loss with its prototypes.

    The prototypes are parameters: give them to the optimizer,
    ``AdamW([*model.parameters(), *loss_fn.parameters()])``, and save them with the model. Where
    that is a nuisance, put a `PrototypeHead` into the model and use `from_head`. The formula stands
    with `cfal_loss`.

    Args:
        num_classes: C, >= 1.
        embedding_dim: D, >= 1.
        centers_per_class: M, >= 1.
        sigma: width of the affinity, > 0; it must match the embedding, see `sigma_from_features`.
        margin: margin of the hinge.
        gamma: exponent of the focal factor, >= 0.
        diversity_weight: weight of the diversity term.
        class_counts: [C] training samples per class: turns on class-balanced weights.
        beta: of the class-balanced weights, in [0, 1); used with `class_counts` only.
        class_weights: [C] weights as they are, >= 0; excludes `class_counts`.
        detach_focal: treat the focal factor as a constant in the gradient, as the authors' code
            does.
        reduction: "mean" over the rows that count, "sum" or "none".
        ignore_index: rows with this target contribute nothing.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; see `explain`.
        init: "authors" (normal with std sqrt(2 / C)) or a tensor [C, D] or [C, M, D] to copy; class
            means come from `initialize_prototypes_`.
        device: of prototypes and weights.
        dtype: of the prototypes, float32 unless given.

    Attributes:
        prototypes: parameter [C, M, D] (the head's own after `from_head`).
        class_weights: buffer [C], float32; ones where nothing was given.

    Raises:
        TypeError, ValueError: an argument of the wrong type, out of range, or excluded by another.

    Example:
        >>> loss_fn = cfal.CFALLoss(num_classes=9, embedding_dim=128, class_counts=[900, 40, ...])
        >>> loss_fn(model(images), target).backward()
        >>> classes = loss_fn.predict(model(images))
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        centers_per_class: int = 1,
        sigma: float = 130.0,
        margin: float = 0.1,
        gamma: float = 2.0,
        diversity_weight: float = 1.0,
        class_counts: Any = None,
        beta: float = 0.9999,
        class_weights: Any = None,
        detach_focal: bool = False,
        reduction: str = "mean",
        ignore_index: int = -100,
        backend: str = "auto",
        init: str | Tensor = "authors",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._head: tuple[PrototypeHead] | None = None
        self.num_classes = _checks.whole_number("num_classes", num_classes, minimum=1)
        self.embedding_dim = _checks.whole_number("embedding_dim", embedding_dim, minimum=1)
        self.centers_per_class = _checks.whole_number(
            "centers_per_class", centers_per_class, minimum=1
        )
        self._sigma, self.margin, self.gamma, self.diversity_weight = _checks.hyperparameters(
            sigma, margin, gamma, diversity_weight
        )
        self.detach_focal = _checks.flag("detach_focal", detach_focal)
        _checks.reduction_code(reduction)
        self.reduction = reduction
        self.ignore_index = _checks.whole_number("ignore_index", ignore_index)
        backends.check_name(backend)
        self.backend = backend
        self.beta = check_beta(beta)
        self._weighting = ""
        weights = self._initial_weights(class_counts, class_weights)
        # For reset_parameters, where the tensors themselves were lost on the meta device.
        self._start = (init.detach().clone() if isinstance(init, Tensor) else init, weights.clone())
        # Not by assignment: the property of that name would stop nn.Module from registering it.
        self._parameters["prototypes"] = self._initial_prototypes(init, device, dtype)
        self.register_buffer("class_weights", weights.to(self.prototypes.device))
        self._watch: diagnostics.TrainingWatch | None = diagnostics.TrainingWatch()

    @classmethod
    def from_head(cls, head: PrototypeHead, **keywords: Any) -> CFALLoss:
        """The loss on the prototypes of a head that the model owns.

        The loss has no parameters of its own then: optimizer, DistributedDataParallel and
        checkpoints see the prototypes once, in the model. A deepcopy or pickle of something that
        holds both keeps them tied; copied alone, the loss takes a copy of the head with it.

        Args:
            head: gives num_classes, embedding_dim, centers_per_class and sigma.
            **keywords: the other keywords of the class.

        Raises:
            TypeError: `head` is no `PrototypeHead`.
            ValueError: a keyword that contradicts the head.

        Example:
            >>> loss_fn = cfal.CFALLoss.from_head(model.head, class_counts=counts)
        """
        if not isinstance(head, PrototypeHead):
            raise TypeError(f"head must be a PrototypeHead, got {type(head).__name__}")
        for name in ("num_classes", "embedding_dim", "centers_per_class", "sigma"):
            own = getattr(head, name)
            as_own = _checks.real if name == "sigma" else _checks.whole_number
            if name in keywords and as_own(name, keywords.pop(name)) != own:
                raise ValueError(f"{name} belongs to the head, which has {own!r}; leave it out")
        for name in ("init", "dtype"):
            if name in keywords:
                raise ValueError(
                    f"{name} concerns the prototypes, which belong to the head; leave it out"
                )
        keywords.setdefault("device", head.prototypes.device)
        loss = cls(
            head.num_classes,
            head.embedding_dim,
            centers_per_class=head.centers_per_class,
            sigma=head.sigma,
            init=head.prototypes,
            **keywords,
        )
        loss._start = (None, loss._start[1])
        del loss._parameters["prototypes"]
        # In a tuple, because nn.Module would register the head as a child and so own its parameter
        # twice.
        loss._head = (head,)
        return loss

    def _initial_weights(self, class_counts: Any, class_weights: Any) -> Tensor:
        if class_counts is not None and class_weights is not None:
            raise ValueError("class_counts and class_weights exclude each other; give one of them")
        if class_weights is not None:
            self._weighting = "class_weights given"
            return check_class_weights(class_weights, self.num_classes)
        if class_counts is None:
            return torch.ones(self.num_classes, dtype=torch.float32, device="cpu")
        counts = check_counts(class_counts, self.num_classes)
        weights = class_balanced_weights(counts, self.beta)
        diagnostics.warn_if_weights_are_flat(weights, counts, self.beta)
        self._weighting = f"class-balanced with beta={self.beta:.15g}"
        return weights

    def _initial_prototypes(
        self, init: str | Tensor, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> nn.Parameter:
        shape = (self.num_classes, self.centers_per_class, self.embedding_dim)
        prototypes = torch.empty(shape, device=device, dtype=_arguments.parameter_dtype(dtype))
        self._fill(prototypes, init)
        return nn.Parameter(prototypes)

    @torch.no_grad()
    def _fill(self, prototypes: Tensor, init: str | Tensor) -> None:
        if isinstance(init, Tensor):
            start = init.detach()
            start = start.unsqueeze(1) if start.dim() == 2 else start
            if start.shape != prototypes.shape:
                raise ValueError(
                    f"init must have shape {list(prototypes.shape)}, got {list(init.shape)}"
                )
            prototypes.copy_(start)
        elif isinstance(init, str) and init == "authors":
            authors_(prototypes)
        else:
            raise ValueError(
                f"init must be 'authors' or a tensor, got {_checks.shown(init)}; for class means "
                f"call initialize_prototypes_(loss, features, target)"
            )

    def reset_parameters(self) -> None:
        """Puts prototypes and class weights back to what the constructor was told.

        Needed after ``CFALLoss(..., device="meta").to_empty(device=...)``, which leaves them
        undefined. "authors" draws anew. The prototypes of a head are the head's to reset.

        Example:
            >>> loss_fn = cfal.CFALLoss(9, 128, device="meta").to_empty(device="cpu")
            >>> loss_fn.reset_parameters()
        """
        init, weights = self._start
        if self._head is None:
            self._fill(self.prototypes, init)
        self.class_weights.copy_(weights)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses to replace prototypes that belong to a head."""
        if name == "prototypes" and self.__dict__.get("_head") is not None:
            raise AttributeError(
                "the prototypes belong to the head; assign head.prototypes instead"
            )
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CFALLoss:
        # .half() is for the prototypes; rounding the weights would gain nothing.
        weights = self.class_weights
        super()._apply(fn, recurse)
        if self.class_weights.dtype != weights.dtype:
            self.class_weights = weights.to(self.class_weights.device)
        return self

    @property
    def prototypes(self) -> Tensor:
        """[C, M, D]: this module's parameter, or the head's."""
        if self._head is not None:
            return self._head[0].prototypes
        if "prototypes" in self.__dict__:
            return self.__dict__["prototypes"]
        return self.__getattr__("prototypes")  # nn.Module's own lookup, which this property hides

    # For what puts a tensor in the parameter's place: pruning, weight norm, replicas.
    @prototypes.setter
    def prototypes(self, value: Tensor) -> None:
        self.__dict__["prototypes"] = value

    @prototypes.deleter
    def prototypes(self) -> None:
        if self.__dict__.pop("prototypes", None) is None:
            raise AttributeError("prototypes")

    @property
    def sigma(self) -> float:
        """Width of the affinity; the head's where there is one."""
        return self._sigma if self._head is None else self._head[0].sigma

    @sigma.setter
    def sigma(self, value: float) -> None:
        value = _checks.hyperparameters(value, 0.0, 0.0, 0.0)[0]
        if self._head is None:
            self._sigma = value
        else:
            self._head[0].sigma = value

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The loss of features [B, D] and class indices target [B]; errors as `cfal_loss`."""
        # What cfal_loss does, with attributes where they lie: in a small step its keywords and the
        # lookups of nn.Module cost as much as a kernel.
        prototypes = self._parameters.get("prototypes")
        if prototypes is None:
            prototypes = self.prototypes
        head = self._head
        sigma = self._sigma if head is None else head[0].sigma
        loss = backends.loss(
            self.backend, features, prototypes, target, self._buffers["class_weights"],
            sigma, self.margin, self.gamma, self.diversity_weight, self.detach_focal,
            self.reduction, self.ignore_index,
        )  # fmt: skip
        watch = self._watch
        if (
            watch is not None
            and not torch.compiler.is_compiling()
            # Under vmap and grad, and of fake tensors, there is no value to look at.
            and not torch._C._are_functorch_transforms_active()
            and not torch._C._len_torch_dispatch_stack()
            and self.training
            and loss.requires_grad
            and not watch.step(features, prototypes, sigma, head is None)
        ):
            self._watch = None
        return loss

    def affinity(self, features: Tensor) -> Tensor:
        """Affinities a = exp(-q / sigma) [B, C] of features [B, D]: 1 at a prototype, 0 afar."""
        return torch.exp(-squared_distances(features, self.prototypes) / self.sigma)

    def predict(self, features: Tensor) -> Tensor:
        """The class of the nearest prototype [B], int64, for features [B, D]; no gradient."""
        with torch.no_grad():
            return squared_distances(features, self.prototypes).argmin(1)

    def predict_proba(self, features: Tensor) -> Tensor:
        """Posteriors a_j / sum_k a_k [B, C] of features [B, D], by a softmax; no gradient."""
        with torch.no_grad():
            return torch.softmax(-squared_distances(features, self.prototypes) / self.sigma, dim=1)

    def extra_repr(self) -> str:
        """Everything that the constructor was told."""
        parts = [
            f"{self.num_classes}, {self.embedding_dim}",
            f"centers_per_class={self.centers_per_class}",
            f"sigma={self.sigma:.15g}",
            f"margin={self.margin:.15g}",
            f"gamma={self.gamma:.15g}",
            f"diversity_weight={self.diversity_weight:.15g}",
            f"reduction={self.reduction!r}",
        ]
        if self._weighting:
            parts.append(self._weighting)
        if self.detach_focal:
            parts.append("detach_focal=True")
        if self.ignore_index != -100:
            parts.append(f"ignore_index={self.ignore_index}")
        if self.backend != "auto":
            parts.append(f"backend={self.backend!r}")
        if self._head is not None:
            parts.append("prototypes of a head")
        return ", ".join(parts)


class AffinityLoss(CFALLoss):
    """The affinity loss L_a: `CFALLoss` with gamma = 0 and no class weights.

    Args:
        num_classes: C.
        embedding_dim: D.
        **keywords: those of `CFALLoss` except gamma, detach_focal, class_counts, beta and
            class_weights.

    Raises:
        TypeError, ValueError: as `CFALLoss`.

    Example:
        >>> loss_fn = cfal.AffinityLoss(9, 128, sigma=130.0, margin=0.1)
    """

    def __init__(self, num_classes: int, embedding_dim: int, **keywords: Any) -> None:
        _refuse(self, keywords, "gamma", "detach_focal", "class_counts", "beta", "class_weights")
        super().__init__(num_classes, embedding_dim, gamma=0.0, **keywords)


class ClassBalancedAffinityLoss(CFALLoss):
    """The class-balanced affinity loss L_cba: `CFALLoss` with gamma = 0.

    Args:
        num_classes: C.
        embedding_dim: D.
        **keywords: those of `CFALLoss` except gamma and detach_focal; without class_counts or
            class_weights every weight is 1.

    Raises:
        TypeError, ValueError: as `CFALLoss`.

    Example:
        >>> loss_fn = cfal.ClassBalancedAffinityLoss(2, 64, class_counts=[5638, 2086], beta=0.9999)
    """

    def __init__(self, num_classes: int, embedding_dim: int, **keywords: Any) -> None:
        _refuse(self, keywords, "gamma", "detach_focal")
        super().__init__(num_classes, embedding_dim, gamma=0.0, **keywords)


def _refuse(module: nn.Module, keywords: dict[str, Any], *names: str) -> None:
    for name in names:
        if name in keywords:
            raise TypeError(
                f"{type(module).__name__} has no keyword {name}: it is CFALLoss with that term "
                f"switched off"
            )
