"""Many prototypes, backward: near pairs by their differences.

    grad_f_i += v_i A_ij (w_j - f_i),   grad_w_j += v_i A_ij (f_i - w_j)

Sums of products A_ij w_j and A_ij f_i would lose the digits of w_j - f_i where that is small beside
both. A near pair is a negative entry of the active affinities. Most calls have next to none: the
loops here run over the tiles that have some, in them over the prototypes, or rows, that have some.
Shapes: tiles of BR rows and BC padded prototypes, BD features.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_near_prototypes(
    b_acc, p_a, p_list, begin, end, p_f, p_w, row, inside, d,
    f_row, f_col, w_class, w_centre, w_col,
    D: tl.constexpr, MP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """b_acc [BR, BD] + sum_j A_ij (w_j - f_i) over the near pairs of tiles begin to end of a list.

    p_a [BR] points to the rows of A.
    """
    i = tl.arange(0, BC)
    column = d.to(tl.int64)
    in_d = d < D
    mask = inside[:, None] & in_d[None, :]
    for n in tl.range(begin, end):
        start = tl.load(p_list + n) * BC
        b_a = tl.load(p_a[:, None] + (start + i)[None, :], mask=inside[:, None], other=0.0)
        waiting = tl.max((b_a < 0.0).to(tl.int32), axis=0)  # [BC]
        j = 0
        while j < BC:
            j = tl.min(tl.where(waiting > 0, i, BC), axis=0)
            if j < BC:
                waiting = tl.where(i == j, 0, waiting)
                k = start + j
                a = -tl.load(p_a + k, mask=inside, other=0.0)  # [BR]
                offset = (k // MP).to(tl.int64) * w_class + (k % MP).to(tl.int64) * w_centre
                w = tl.load(p_w + offset + column * w_col, mask=in_d, other=0.0)  # [BD]
                where = row[:, None] * f_row + column[None, :] * f_col
                b_f = tl.load(p_f + where, mask=mask & (a > 0.0)[:, None], other=0.0)
                b_pull = a[:, None] * (w.to(b_acc.dtype)[None, :] - b_f.to(b_acc.dtype))
                b_acc += tl.where((a > 0.0)[:, None], b_pull, 0.0)
    return b_acc


@triton.jit
def add_near_rows(
    b_acc, p_active, p_list, begin, end, p_f, p_w, p_pull, first, rows, k, d,
    f_row, f_col, w_class, w_centre, w_col,
    C: tl.constexpr, M: tl.constexpr, D: tl.constexpr, MP: tl.constexpr,
    COLUMNS: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """b_acc [BC, BD] + sum_i v_i A_ij (f_i - w_j) over the near pairs of tiles begin to end.

    p_active [rows, COLUMNS] and the list are of rows [first, first + rows).
    """
    i = tl.arange(0, BR)
    column = d.to(tl.int64)
    in_d = d < D
    in_k = (k // MP < C) & (k % MP < M)
    offset = (k // MP).to(tl.int64) * w_class + (k % MP).to(tl.int64) * w_centre
    for n in tl.range(begin, end):
        start = tl.load(p_list + n).to(tl.int64) * BR
        p_a = p_active + (start + i)[None, :] * COLUMNS + k[:, None]  # [BC, BR]
        b_a = tl.load(p_a, mask=(start + i < rows)[None, :], other=0.0)
        waiting = tl.max((b_a < 0.0).to(tl.int32), axis=0)  # [BR]
        r = 0
        while r < BR:
            r = tl.min(tl.where(waiting > 0, i, BR), axis=0)
            if r < BR:
                waiting = tl.where(i == r, 0, waiting)
                a = -tl.load(p_active + (start + r) * COLUMNS + k)  # [BC]
                row = first.to(tl.int64) + start + r
                pull = tl.load(p_pull + row)
                f = tl.load(p_f + row * f_row + column * f_col, mask=in_d, other=0.0)  # [BD]
                where = offset[:, None] + column[None, :] * w_col
                b_w = tl.load(p_w + where, mask=in_k[:, None] & in_d[None, :], other=0.0)
                b_push = (pull * a)[:, None] * (f.to(b_acc.dtype)[None, :] - b_w.to(b_acc.dtype))
                b_acc += tl.where((a > 0.0)[:, None], b_push, 0.0)
    return b_acc
