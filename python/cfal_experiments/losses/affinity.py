"""The affinity family on the kernels of `cfal_kernels`: L_a, L_cba and CFAL itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cfal_experiments.losses.prototypes import PrototypeLoss


class Affinity(PrototypeLoss):
    """The affinity loss L_a (Eq. 4): hinges and diversity, neither weights nor focus.

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]`, checked but not used.
        sigma: width of the affinity, or "auto".
        margin: lambda of the hinge.
        diversity_weight: of R; 1 in the paper.
        centers_per_class: M.
        init: "authors" or "class-means".
        backend: of the kernels; see `cfal_kernels.explain`.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range.

    Example:
        >>> loss = Affinity(9, 128, counts, sigma=130.0, margin=0.1)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        sigma: float | Literal["auto"] = 130.0,
        margin: float = 0.1,
        diversity_weight: float = 1.0,
        centers_per_class: int = 1,
        init: Literal["authors", "class-means"] = "authors",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            class_counts,
            sigma,
            init,
            beta=None,
            margin=margin,
            gamma=0.0,
            diversity_weight=diversity_weight,
            centers_per_class=centers_per_class,
            backend=backend,
        )


class ClassBalancedAffinity(PrototypeLoss):
    """The class-balanced affinity loss L_cba (Eq. 8): L_a with class weights.

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]` training samples per class.
        sigma: width of the affinity, or "auto".
        margin: lambda of the hinge.
        beta: of the class-balanced weights, in [0, 1).
        diversity_weight: of R; 1 in the paper.
        centers_per_class: M.
        init: "authors" or "class-means".
        backend: of the kernels; see `cfal_kernels.explain`.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range.

    Example:
        >>> loss = ClassBalancedAffinity(9, 128, counts, beta=0.9999)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        sigma: float | Literal["auto"] = 130.0,
        margin: float = 0.1,
        beta: float = 0.9999,
        diversity_weight: float = 1.0,
        centers_per_class: int = 1,
        init: Literal["authors", "class-means"] = "authors",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            class_counts,
            sigma,
            init,
            margin=margin,
            gamma=0.0,
            diversity_weight=diversity_weight,
            beta=beta,
            centers_per_class=centers_per_class,
            backend=backend,
        )


class CFAL(PrototypeLoss):
    """The Center-Focused Affinity Loss (Eq. 7): L_cba with the focal factor (1 - s)^gamma.

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]` training samples per class.
        sigma: width of the affinity, or "auto".
        margin: lambda of the hinge.
        gamma: exponent of the focal factor, >= 0.
        beta: of the class-balanced weights, in [0, 1).
        diversity_weight: of R; 1 in the paper.
        detach_focal: treat the focal factor as a constant in the gradient, as the authors' code
            does.
        centers_per_class: M.
        init: "authors" or "class-means".
        backend: of the kernels; see `cfal_kernels.explain`.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range.

    Example:
        >>> loss = CFAL(2, 64, counts, sigma="auto", gamma=2.0, init="class-means")
        >>> loss.initialise_from(features, target)
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        *,
        sigma: float | Literal["auto"] = 130.0,
        margin: float = 0.1,
        gamma: float = 2.0,
        beta: float = 0.9999,
        diversity_weight: float = 1.0,
        detach_focal: bool = False,
        centers_per_class: int = 1,
        init: Literal["authors", "class-means"] = "authors",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            class_counts,
            sigma,
            init,
            margin=margin,
            gamma=gamma,
            diversity_weight=diversity_weight,
            detach_focal=detach_focal,
            beta=beta,
            centers_per_class=centers_per_class,
            backend=backend,
        )
