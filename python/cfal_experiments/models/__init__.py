"""Models that map images to an embedding; the classifier belongs to the loss."""

from cfal_experiments.models.alexnet import AlexNet32

__all__ = ["AlexNet32"]
