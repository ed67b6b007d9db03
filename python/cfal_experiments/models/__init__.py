"""Models that map images to an embedding; the classifier belongs to the loss."""

from cfal_experiments.models.alexnet import AlexNet32
from cfal_experiments.models.mlp import MLP

__all__ = ["MLP", "AlexNet32"]
