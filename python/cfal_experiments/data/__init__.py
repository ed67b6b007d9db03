"""Data sets, held in memory as tensors, and how they are split."""

from cfal_experiments.data.samples import Samples, Split

__all__ = ["Samples", "Split"]
