"""What the forward for many prototypes leaves to the backward: one buffer, views of its parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import config
from . import many_rows as by_row

_ROW_STATE = 6


def kept_rows(rows: int, columns: int) -> int:
    """Rows whose active affinities the forward keeps, of `columns` padded prototypes."""
    fit = config.MANY_CACHE // columns // config.MANY_ROWS * config.MANY_ROWS
    return torch.sym_min(rows, fit)


def saved_numel(features: Tensor, prototypes: Tensor, compute: torch.dtype) -> int:
    """Length of the saved buffer, from shapes and dtypes alone."""
    return Layout.of(features, prototypes, compute).numel


def products_of_halves(features: Tensor, prototypes: Tensor) -> bool:
    """Whether both are of one half dtype: they go to the tensor cores as they are."""
    return features.dtype == prototypes.dtype and features.dtype.itemsize == 2


@dataclass(frozen=True)
class Layout:
    """The saved buffer, in elements of the compute type; rows may be symbolic.

    The float64 part (`HEAD` scalars, q / sigma of the own class [B]), then active affinities
    [kept, columns], their flags [row tiles, tiles], six numbers a row, the prototypes' norms and
    their mean.
    """

    rows: int
    tiles: int
    columns: int
    dim: int
    kept: int
    wide: int

    @staticmethod
    def of(features: Tensor, prototypes: Tensor, compute: torch.dtype) -> Layout:
        """For features [B, D] and prototypes [C, M, D]."""
        rows, dim = features.shape
        classes, centres, _ = prototypes.shape
        half = products_of_halves(features, prototypes)
        b_c, m_p = config.many_columns(classes, centres, compute.itemsize, half)
        tiles = -(-classes * m_p // b_c)
        columns = tiles * b_c
        return Layout(rows, tiles, columns, dim, kept_rows(rows, columns), 8 // compute.itemsize)

    @property
    def doubles(self) -> int:
        """Elements of the float64 part, a multiple of 16 bytes."""
        return (by_row.HEAD + self.rows + 1) // 2 * 2

    @property
    def flags(self) -> int:
        """Flags of the kept tiles, of 16 rows or more each; a multiple of 16 bytes as all parts."""
        return ((self.kept // 16 + 1) * self.tiles + 3) // 4 * 4

    @property
    def padded_rows(self) -> int:
        """Rows, rounded up: every part begins at a multiple of 16 bytes, as kernels expect."""
        return (self.rows + 3) // 4 * 4

    @property
    def numel(self) -> int:
        """Length of the buffer."""
        affinities = self.kept * self.columns + self.flags
        by_row = _ROW_STATE * self.padded_rows
        return self.doubles * self.wide + affinities + by_row + self.columns + self.dim


class Saved:
    """Views of the saved buffer."""

    def __init__(self, buffer: Tensor, layout: Layout):
        """Splits `buffer`, which has the layout's length, or less if nothing is kept in it."""
        doubles = layout.doubles * layout.wide
        wide = buffer[:doubles].view(torch.float64)
        self.head, self.ratio = wide[: by_row.HEAD], wide[by_row.HEAD :]
        sizes = [layout.kept * layout.columns, layout.flags, *[layout.padded_rows] * _ROW_STATE]
        parts = buffer[doubles:].split([*sizes, layout.columns, layout.dim])
        self.active, self.flags, self.norm, self.own = parts[:4]
        self.weight, self.factor, self.c_own, self.active_sum = parts[4:8]
        self.w_norm, self.mean = parts[8:]
