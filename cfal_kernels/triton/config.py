"""Launch shapes by regime, size and dtype: static, so that nothing is tuned at run time.

They follow from counting registers and programs, as said beside each; `benchmarks/tune_triton.py`
measures alternatives on a machine with a GPU. Every function depends on shapes and dtypes alone:
results do not depend on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Programs that fill a large device a few times over; more only add partial sums.
PROGRAMS = 512
#: Rows that a chunk of the backward has at least, so that partial sums stay few.
CHUNK_ROWS = 32
#: Rows that a program of the forward has at least: the saved buffer holds B + 4 float64 numbers for
#: the three partial sums of every program.
LEAST_ROWS = 4


def power_of_two(n: int) -> int:
    """The least power of two that is >= n, and 1 for n < 1."""
    return 1 << max(0, n - 1).bit_length()


def _bounded(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


@dataclass(frozen=True)
class FewForward:
    """Tiles of the forward for few prototypes.

    Attributes:
        b_r: rows of a program, `LEAST_ROWS` or more.
        b_d: features of a step, for rows against prototypes.
        b_p: features of a step, for prototypes against prototypes in float64.
        num_warps: warps of a program.
    """

    b_r: int
    b_d: int
    b_p: int
    num_warps: int

    def __post_init__(self) -> None:
        """Raises ValueError for fewer rows than the saved buffer has room for."""
        if self.b_r < LEAST_ROWS:
            raise ValueError(f"b_r must be >= {LEAST_ROWS}, got {self.b_r}")


@dataclass(frozen=True)
class FewBackward:
    """Tiles of the backward for few prototypes: b_d columns, rows in steps of b_r."""

    b_r: int
    b_d: int
    num_warps: int


def few_forward(rows: int, prototypes: int, dim: int, itemsize: int) -> FewForward:
    """For `prototypes` padded to a power of two, and the itemsize of the compute type.

    [b_r, prototypes, b_d] sums stay in registers, 32 of 4 bytes a thread. A batch of a few hundred
    rows gets few rows a program, to reach every multiprocessor; a large one gets more, so that the
    prototypes are read less often than the features.
    """
    warps = 8 if prototypes * dim > 2048 else 4
    elements = warps * 32 * 32 * 4 // itemsize
    b_r = 16 if rows >= 4096 and prototypes <= 32 else LEAST_ROWS
    while b_r > LEAST_ROWS and b_r * prototypes * 16 > elements:
        b_r //= 2
    widest = power_of_two(dim)
    b_d = _bounded(elements // (b_r * prototypes), 1, min(widest, 512))
    b_p = _bounded(elements * itemsize // (8 * prototypes), 1, min(widest, 512))
    return FewForward(b_r, b_d, b_p, warps)


def few_backward(prototypes: int, dim: int, itemsize: int) -> FewBackward:
    """For `prototypes` padded to a power of two: 16 registers a thread for [b_r, prototypes, b_d].

    32 columns are a cache sector times four of float32; narrower tiles would waste bandwidth.
    """
    elements = 4 * 32 * 32 * 4 // itemsize
    b_d = min(32, power_of_two(dim))
    b_r = _bounded(elements // (prototypes * b_d), 1, 16)
    return FewBackward(b_r, b_d, 4)


def few_chunks(rows: int, tiles: int) -> int:
    """Chunks of rows of the backward: enough programs, and a fixed number for a shape."""
    return _bounded(PROGRAMS // max(1, tiles), 1, max(1, rows // CHUNK_ROWS))
