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


#: Elements of active affinities that the forward keeps for the backward (16 MiB in float32).
MANY_CACHE = 1 << 22
#: Least and most elements of active affinities that the backward recomputes at a time. Between them
#: it is a sixteenth of [B, C]: every chunk goes once over the prototypes' gradient.
MANY_CHUNK = (1 << 21, 1 << 25)
#: Elements of the sums over tiles that the forward holds at a time.
MANY_SUMS = 1 << 21
#: Elements of parts of a gradient that are added up afterwards.
MANY_PARTS = 1 << 20
#: Rows of a tile divide this: chunks of rows begin at its multiples.
MANY_ROWS = 128


@dataclass(frozen=True)
class ManyTile:
    """Tiles of the kernels for many prototypes.

    Attributes:
        b_r: rows.
        b_c: prototypes, padded: b_c / m_p classes of m_p centres.
        m_p: centres of a class, padded to a power of two.
        b_d: features of a step of the products with features as the summed dimension.
        b_o: features of a tile of a gradient.
        b_s: rows or prototypes of a step of the products that sum over them.
        num_warps: warps of a program.
        num_stages: steps that are loaded ahead.
    """

    b_r: int
    b_c: int
    m_p: int
    b_d: int
    b_o: int
    b_s: int
    num_warps: int
    num_stages: int


def many_columns(classes: int, centres: int, itemsize: int, half: bool) -> tuple[int, int]:
    """(b_c, m_p) of `ManyTile`: what the layout of the saved buffer depends on, so not on B."""
    m_p = power_of_two(centres)
    most = 128 if half and centres == 1 else 256 // itemsize
    return max(m_p, _bounded(power_of_two(classes * m_p), 16, most)), m_p


def many_tile(
    rows: int, classes: int, centres: int, dim: int, itemsize: int, half: bool, in_parts: bool
) -> ManyTile:
    """For the itemsize of the compute type.

    Products of half inputs are so fast that tiles must be large to be read from the L2 cache in
    time: 128 x 128, 64 sums a thread of 8 warps, unless several centres need registers too. Those
    of float32 go three times through the tensor cores and hold both parts of every operand in
    registers: 128 x 64. Float64 has half of that. A step is 128 bytes of a row wide, so that three
    of them fit half the shared memory.

    Args:
        rows: B.
        classes: C.
        centres: M.
        dim: D.
        itemsize: of the compute type.
        half: whether features and prototypes go to the tensor cores as they are.
        in_parts: whether affinities are taken apart into bfloat16 terms for their products.
    """
    b_c, m_p = many_columns(classes, centres, itemsize, half)
    most = MANY_ROWS * 4 // itemsize
    b_r = _bounded(power_of_two(rows), 16, most)
    while b_r > 16 and b_r * b_c > most * most:
        b_r //= 2
    widest = max(16, power_of_two(dim))
    # Rows that are not 16-byte aligned are read one by one, and every address takes registers.
    # Hundreds of centres in a class: narrower steps, to fit shared memory.
    step = 64 if half else max(16, (128 if dim % 16 == 0 else 64) // itemsize)
    b_d = min(widest, max(16, step * 128 // max(128, b_c)))
    b_o = min(widest, 128 if in_parts and dim % 16 == 0 else 256 // itemsize)
    b_s = min(b_r, b_c, 128 // itemsize)
    stages = 3 if itemsize == 4 and b_c <= 128 else 2
    # Sums of float64 take twice the registers: more warps hold them without spilling.
    warps = 8 if b_r * b_c > (1024 if itemsize == 8 else 4096) else 4
    return ManyTile(b_r, b_c, m_p, b_d, b_o, b_s, warps, stages)


def many_chunk(rows: int, columns: int) -> int:
    """Rows that the backward recomputes at a time, of `columns` padded prototypes."""
    budget = _bounded(rows * columns // 16, *MANY_CHUNK)
    return max(1, budget // columns // MANY_ROWS) * MANY_ROWS


def many_splits(programs: int, elements: int) -> int:
    """Parts of a sum, so that the programs fill a device, within the budget for parts.

    Args:
        programs: that there would be without a split.
        elements: of one part.
    """
    return _bounded(min(PROGRAMS // programs, MANY_PARTS // elements), 1, 8)
