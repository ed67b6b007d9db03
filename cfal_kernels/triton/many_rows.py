"""Many prototypes: kernels over rows and prototypes, with nothing of [B, C] in them.

Norms and own-class distances before the products; losses and coefficients after them; and the row
weights of the backward. Shapes at a tile: b_r = BR rows, b_d = BD features.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formulas import row_slopes

# Scalars at the head of the float64 part of what is saved: R and the reduction's scale.
RW = tl.constexpr(0)
SCALE = tl.constexpr(1)
#: How many elements the head has.
HEAD = 2


@triton.jit
def prototype_norms_kernel(
    p_w, p_mean, p_norm, w_class, w_centre, w_col,
    C: tl.constexpr, M: tl.constexpr, D: tl.constexpr, MP: tl.constexpr,
    MEAN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, CT: tl.constexpr,
):  # fmt: skip
    """|w_k - mean|^2 of padded index k = class * MP + centre, 0 for padding, NaN unless finite."""
    k = tl.program_id(0) * BK + tl.arange(0, BK)
    b_class = k // MP
    b_centre = k % MP
    inside = (b_class < C) & (b_centre < M)
    offset = b_class.to(tl.int64) * w_class + b_centre.to(tl.int64) * w_centre
    b_acc = tl.zeros([BK, BD], CT)
    b_poison = tl.zeros([BK, BD], CT)
    for d0 in tl.range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        mask = inside[:, None] & (d < D)[None, :]
        where = offset[:, None] + d.to(tl.int64)[None, :] * w_col
        b_w = tl.load(p_w + where, mask=mask, other=0.0).to(CT)
        b_poison += b_w * 0.0
        if MEAN:
            b_mean = tl.load(p_mean + d, mask=d < D, other=0.0)
            b_w = tl.where(mask, b_w - b_mean[None, :], 0.0)
        b_acc += b_w * b_w
    b_norm = tl.sum(b_acc, axis=1)
    # NaN is for what is not finite: a finite vector whose norm overflows has the norm inf.
    finite = tl.sum(b_poison, axis=1) == 0.0
    b_norm = tl.where(finite, tl.where(b_norm == b_norm, b_norm, float("inf")), float("nan"))
    tl.store(p_norm + k, b_norm)


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def row_norms_kernel(
    p_f, p_w, p_y, p_mean, p_poison, p_ratio, p_norm, p_own,
    rows, f_row, f_col, w_class, w_centre, w_col, y_stride, ignore_index, sigma: tl.float64,
    C: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
    MEAN: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, CT: tl.constexpr,
):  # fmt: skip
    """Of each row: |f - mean|^2 (NaN unless all is finite), q_iy / sigma, and its own centre.

    The own distance is the small one of a trained model, and the focal factor depends on it:
    always by direct differences, in float64. The own centre is -1 for an ignored row.
    """
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    inside = row < rows
    y = tl.load(p_y + row * y_stride, mask=inside, other=0).to(tl.int64)
    counted = inside & (y != ignore_index)  # [BR]
    valid = (y >= 0) & (y < C)
    tl.device_assert(valid | (counted == 0), "cfal: target out of range")
    # The assertion ends the launch a little later: until then no class is out of bounds.
    y = tl.where(counted & valid, y, 0)

    b_best = tl.zeros([BR], tl.float64)
    b_near = tl.zeros([BR], tl.int64)
    b_norm = tl.zeros([BR], CT)
    finite = counted
    for m in tl.range(0, M):
        b_q = tl.zeros([BR, BD], tl.float64)
        b_acc = tl.zeros([BR, BD], CT)
        b_poison = tl.zeros([BR, BD], CT)
        b_m = y * 0 + m  # in 64 bits
        offset = y * w_class + b_m * w_centre
        for d0 in tl.range(0, D, BD):
            d = d0 + tl.arange(0, BD)
            mask = counted[:, None] & (d < D)[None, :]
            column = d.to(tl.int64)[None, :]
            b_f = tl.load(p_f + row[:, None] * f_row + column * f_col, mask=mask, other=0.0).to(CT)
            b_w = tl.load(p_w + offset[:, None] + column * w_col, mask=mask, other=0.0).to(CT)
            b_difference = b_f.to(tl.float64) - b_w.to(tl.float64)
            b_q += b_difference * b_difference
            b_poison += b_f * 0.0
            if MEAN:
                b_mean = tl.load(p_mean + d, mask=d < D, other=0.0)
                b_f = tl.where(mask, b_f - b_mean[None, :], 0.0)
            b_acc += b_f * b_f
        b_distance = tl.sum(b_q, axis=1)
        nearer = (b_distance < b_best) | (m == 0)  # ties go to the lower index
        b_best = tl.where(nearer, b_distance, b_best)
        b_near = tl.where(nearer, b_m, b_near)
        finite = finite & (tl.sum(b_poison, axis=1) == 0.0)
        b_norm = tl.sum(b_acc, axis=1)
    finite = finite & (tl.load(p_poison) == 0)
    b_norm = tl.where(b_norm == b_norm, b_norm, float("inf"))
    b_norm = tl.where(counted, tl.where(finite, b_norm, float("nan")), 0.0)
    tl.store(p_norm + row, b_norm, mask=inside)
    tl.store(p_ratio + row, b_best / sigma, mask=inside)
    tl.store(p_own + row, tl.where(counted, y * M + b_near, -1).to(CT), mask=inside)


@triton.jit(do_not_specialize=["first", "rows"])
def losses_kernel(
    p_sums, p_head, p_ratio, p_norm, p_own, p_omega, p_loss, p_partial,
    p_weight, p_factor, p_c_own, p_active,
    first, rows, tiles, omega_stride,
    sigma: tl.float64, margin: tl.float64, gamma: tl.float64, rho: tl.float64,
    M: tl.constexpr, KIND: tl.constexpr, DETACH: tl.constexpr, WEIGHTS: tl.constexpr,
    DIVERSITY: tl.constexpr, ROWS: tl.constexpr, BR: tl.constexpr, CT: tl.constexpr,
):  # fmt: skip
    """Losses and coefficients of rows [first, first + rows) from the sums of their tiles.

    p_sums holds [tiles, 3, rows]: open hinges, their affinities, those of pairs that are not near.
    Of each row are left (2 / sigma) m_i, m_i, the own coefficient and the third sum, and of each
    program the sum of losses and the number of rows that count.
    """
    local = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    inside = local < rows
    row = first + local
    active = tl.zeros([BR], tl.float64)
    affinities = tl.zeros([BR], tl.float64)
    far = tl.zeros([BR], tl.float64)
    for tile in tl.range(0, tiles):
        where = p_sums + tile * 3 * rows + local  # fewer than 2^31 of them
        active += tl.load(where, mask=inside, other=0.0).to(tl.float64)
        affinities += tl.load(where + rows, mask=inside, other=0.0).to(tl.float64)
        far += tl.load(where + 2 * rows, mask=inside, other=0.0).to(tl.float64)
    own = tl.load(p_own + row, mask=inside, other=-1.0).to(tl.int64)
    counted = own >= 0  # [BR]
    norm = tl.load(p_norm + row, mask=inside, other=0.0)
    poison = tl.where(norm == norm, 0.0, float("nan")).to(tl.float64)
    ratio = tl.load(p_ratio + row, mask=inside, other=0.0)
    # sum_j h_ij over the open hinges h_ij = lambda + a_ij - s_i
    hinge_sum = (margin - tl.exp(-ratio)) * active + affinities
    omega = tl.zeros([BR], tl.float64) + 1.0
    if WEIGHTS:
        where = p_omega + (own // M) * omega_stride
        omega = tl.load(where, mask=counted, other=0.0).to(tl.float64)
    factor, c_own, by_r = row_slopes(
        ratio, hinge_sum, active, omega, sigma, gamma, rho, KIND, DETACH
    )
    # loss_i = m_i (sum_j h_ij + rho R), and the own coefficient is linear in R as well
    if DIVERSITY:
        R = tl.load(p_head + RW)
        hinge_sum += rho * R
        c_own += tl.where(by_r == 0.0, 0.0, by_r * R)
    loss = tl.where(counted, factor * hinge_sum + poison, 0.0)
    factor = tl.where(counted, factor + poison, 0.0)
    c_own = tl.where(counted, c_own + poison, 0.0)
    tl.store(p_weight + row, (2.0 / sigma * factor).to(CT), mask=inside)
    tl.store(p_factor + row, factor.to(CT), mask=inside)
    tl.store(p_c_own + row, c_own.to(CT), mask=inside)
    tl.store(p_active + row, far.to(CT), mask=inside)
    if ROWS:
        tl.store(p_loss + row, loss.to(CT), mask=inside)
    # Chunks begin at multiples of BR: the programs of all chunks together count the rows in BRs.
    where = p_partial + (first // BR + tl.program_id(0)).to(tl.int64) * 2
    tl.store(where, tl.sum(loss, axis=0))
    tl.store(where + 1, tl.sum(tl.where(counted, 1.0, 0.0).to(tl.float64), axis=0))


@triton.jit(do_not_specialize=["programs"])
def reduce_kernel(p_partial, p_loss, p_head, programs, REDUCTION: tl.constexpr):
    """The reduced loss from the partial sums [programs, 2] in their order, and its scale."""
    b_loss = tl.zeros([1024], tl.float64)
    b_count = tl.zeros([1024], tl.float64)
    for start in tl.range(0, programs, 1024):
        i = start + tl.arange(0, 1024)
        where = p_partial + i.to(tl.int64) * 2
        b_loss += tl.load(where, mask=i < programs, other=0.0)
        b_count += tl.load(where + 1, mask=i < programs, other=0.0)
    total = tl.sum(b_loss, axis=0)
    count = tl.sum(b_count, axis=0)
    scale = count * 0.0 + 1.0
    if REDUCTION == 1:
        total = total / count  # 0 / 0: the mean over no rows is NaN
        scale = tl.where(count > 0.0, 1.0 / tl.where(count > 0.0, count, 1.0), 0.0)
    if REDUCTION != 0:
        tl.store(p_loss, total.to(p_loss.dtype.element_ty))
    tl.store(p_head + SCALE, scale)


@triton.jit(do_not_specialize=["rows"])
def upstream_kernel(
    p_grad, p_head, p_own, p_weight, p_factor, p_c_own, p_pull, p_pull_own, p_partial,
    rows, grad_stride, BR: tl.constexpr, CT: tl.constexpr,
):  # fmt: skip
    """v_i = g_i (2 / sigma) m_i and o_i = g_i c_iy, and each program's part of sum_i g_i m_i."""
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    inside = row < rows
    counted = tl.load(p_own + row, mask=inside, other=-1.0) >= 0.0
    g = tl.load(p_grad + row * grad_stride, mask=counted, other=0.0).to(tl.float64)
    g *= tl.load(p_head + SCALE)
    weight = tl.load(p_weight + row, mask=counted, other=0.0).to(tl.float64)
    c_own = tl.load(p_c_own + row, mask=counted, other=0.0).to(tl.float64)
    factor = tl.load(p_factor + row, mask=counted, other=0.0).to(tl.float64)
    tl.store(p_pull + row, (g * weight).to(CT), mask=inside)
    tl.store(p_pull_own + row, (g * c_own).to(CT), mask=inside)
    tl.store(p_partial + tl.program_id(0), tl.sum(g * factor, axis=0))
