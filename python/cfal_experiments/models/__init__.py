"""Models that map images to an embedding; the classifier belongs to the loss.

`build` makes one by name or by import path. Every model takes `[B, 3, S, S]`, returns `[B, D]`, and
says so in its attributes `input_size` (S) and `embedding_dim` (D).
"""

from cfal_experiments.models.alexnet import AlexNet32
from cfal_experiments.models.base import EmbeddingModel
from cfal_experiments.models.registry import MODELS, build, options

__all__ = ["MODELS", "AlexNet32", "EmbeddingModel", "build", "options"]
