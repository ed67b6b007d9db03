"""What the losses on affinities to prototypes share: prediction, a fitted start, a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import cfal_kernels as cfal
from cfal_experiments.losses import checks
from cfal_experiments.losses.base import HeadedLoss


class PrototypeLoss(HeadedLoss):
    """A loss on affinities to prototypes, with a start that can depend on the embedding.

    Two things of this family must fit the features, and neither is known before the model is:
    `sigma`, whose squared distances grow with D, and where the prototypes start. "auto" and
    "class-means" take them from features of the untrained model, through `initialise_from`.

    Args:
        num_classes: C.
        embedding_dim: D.
        class_counts: `[C]` training samples per class.
        sigma: width of the affinity, > 0; or "auto", which sets the typical affinity between a
            feature and a prototype to 0.5 (`cfal_kernels.sigma_from_features`).
        init: "authors" (normal with std sqrt(2 / C)) or "class-means", which are spread where they
            lie closer together than the authors' prototypes would; see `spread_`.
        beta: of the head's class-balanced weights, in [0, 1); None for no weights.
        **settings: of `cfal_kernels.CFALLoss`.

    Attributes:
        head: the `cfal_kernels.CFALLoss`; its `prototypes` `[C, M, D]` are the parameters.
        fitted_sigma: buffer, the sigma that "auto" found, NaN before; absent for a given sigma. It
            is what a state dict carries of it.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        class_counts: Sequence[int],
        sigma: float | str,
        init: str,
        beta: float | None,
        **settings: Any,
    ) -> None:
        super().__init__(num_classes, embedding_dim, class_counts)
        self.init = checks.one_of("init", init, ("authors", "class-means"))
        self.automatic = isinstance(sigma, str)
        if self.automatic:
            checks.one_of("sigma", sigma, ("auto", "a number > 0"))
            self.register_buffer("fitted_sigma", torch.tensor(math.nan))
        self.register_load_state_dict_post_hook(_start_is_loaded)
        self.needs_initialisation = self.automatic or init == "class-means"
        if beta is not None:
            settings |= {"class_counts": class_counts, "beta": beta}
        placeholder = 1.0  # `_ready` lets no one compute with it
        self.head = cfal.CFALLoss(
            num_classes,
            embedding_dim,
            sigma=placeholder if self.automatic else sigma,
            **settings,
        )

    @property
    def sigma(self) -> float:
        """Width of the affinity; NaN as long as "auto" has seen no features."""
        return math.nan if self.automatic and self.needs_initialisation else self.head.sigma

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Mean loss of features `[B, D]` and classes `[B]`.

        Raises:
            RuntimeError: sigma is "auto" and `initialise_from` was not called.
        """
        self._check_ready()
        return self.head(features, target)

    def logits(self, features: Tensor) -> Tensor:
        """-q_ij / sigma `[B, C]` of features `[B, D]`; their softmax is a_ij / sum_k a_ik."""
        self._check_ready()
        return -cfal.squared_distances(features, self.head.prototypes) / self.head.sigma

    @torch.no_grad()
    def initialise_from(self, features: Tensor, target: Tensor) -> None:
        """Take the start of the prototypes and sigma from features, as the options ask.

        Args:
            features: `[N, D]` of training samples, from the untrained model in evaluation mode.
            target: `[N]` their classes. A class without rows keeps its random prototype.

        Raises:
            ValueError: all features are alike, so that no sigma fits them.
        """
        if self.init == "class-means":
            cfal.initialize_prototypes_(self.head, features, target)
            spread_(self.head.prototypes)
        if self.automatic:
            # Rounded as the buffer rounds it: a run resumed from the state is the same to the bit.
            self.fitted_sigma.fill_(
                cfal.sigma_from_features(features, prototypes=self.head.prototypes)
            )
            self.head.sigma = self.fitted_sigma.item()
        self.needs_initialisation = False

    @torch.no_grad()
    def report(self, features: Tensor, target: Tensor) -> dict[str, float]:
        """How a batch sees the prototypes: what to look at when this loss does not learn.

        Args:
            features: `[B, D]`, B >= 1.
            target: `[B]`.

        Returns:
            sigma; own and other affinity (means of s_i and of a_ij, j != y_i); the shares of hinges
            that are active and of affinities that are exactly 0 in float32; and R. Little can be
            learnt where all affinities are near 0 (sigma too small) or near 1 (sigma too large),
            and where R is large against the number of classes it drowns the hinges.
        """
        self._check_ready()
        affinity = self.head.affinity(features)  # [B, C]
        own = target[:, None]
        s = affinity.gather(1, own)
        others = torch.ones_like(affinity, dtype=torch.bool).scatter_(1, own, False)
        active = self.head.margin + affinity - s > 0
        return {
            "sigma": self.head.sigma,
            "own affinity": s.mean().item(),
            "other affinity": affinity[others].mean().item(),
            "active hinges": active[others].float().mean().item(),
            "zero affinities": (affinity == 0).float().mean().item(),
            "diversity R": diversity(self.head.prototypes),
        }

    def _check_ready(self) -> None:
        if self.automatic and self.needs_initialisation:
            raise RuntimeError(
                'sigma is "auto" and not fitted yet: call initialise_from(features, target) first'
            )


@torch.no_grad()
def spread_(prototypes: Tensor) -> Tensor:
    """Move centres `[C, M, D]` apart about their mean, in place, if they lie close together.

    The class means of an untrained network nearly coincide. A sigma fitted to them is so narrow
    that the first steps carry every feature out of reach, and with a wider one all affinities are
    1. Their directions are worth keeping, their scale is not: it becomes that of the authors'
    start, where entries have variance 2 / C and the mean squared distance of a pair is 4 D / C.
    Means that lie further apart than that stay where they are.
    """
    # In float64: the mean of features that all share an offset is large against their spread.
    centres = prototypes.detach().cpu().double()
    mean = centres.mean((0, 1))
    # Over pairs of K centres, mean |w_j - w_k|^2 = 2 K / (K - 1) mean |w_j - mean|^2.
    count = centres.shape[0] * centres.shape[1]
    between = 2.0 * count / (count - 1) * (centres - mean).square().sum(2).mean()
    wanted = 4.0 * centres.shape[2] / centres.shape[0]
    if 0.0 < between < wanted:
        prototypes.copy_(mean + (centres - mean) * (wanted / between).sqrt())
    return prototypes


def diversity(prototypes: Tensor) -> float:
    """R of Eq. 6: variance of the squared distances between all pairs of centres `[C, M, D]`."""
    centres = prototypes.detach().flatten(0, 1).double()
    pairs = torch.triu_indices(len(centres), len(centres), offset=1)
    between = cfal.squared_distances(centres, centres)[pairs[0], pairs[1]]
    return between.var(correction=0).item()


def _start_is_loaded(module: nn.Module, _: object) -> None:
    """After load_state_dict: prototypes and sigma are those of the state, not to be found again."""
    if not module.automatic:
        module.needs_initialisation = False
        return
    loaded = module.fitted_sigma.item()
    module.needs_initialisation = math.isnan(loaded)
    if not module.needs_initialisation:
        module.head.sigma = loaded
