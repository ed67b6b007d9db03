"""Losses of the experiments, behind one interface: a module that owns the head it trains.

`build` makes one by name. Cross-entropy, focal loss, the angular margins (ArcFace, CosFace,
SphereFace) and the affinity family, CFAL among them, can then be exchanged for one another without
touching a model or a training loop.
"""

from cfal_experiments.losses.base import HeadedLoss
from cfal_experiments.losses.registry import LOSSES, build, options

__all__ = ["LOSSES", "HeadedLoss", "build", "options"]
