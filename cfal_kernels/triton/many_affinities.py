"""Many prototypes: a tile of rows against a tile of classes, from products to open hinges.

Distances come from products, q = |f|^2 + |w|^2 - 2 f w, decisions do not: an entry whose hinge or
nearest centre is within the product's error is decided by direct differences in float64
(docs/maths.md, "Distances by matrix products"). Forward and backward run this one kernel, with the
same tiles, so that they agree on every hinge.

A pair with q < (|f|^2 + |w|^2) / 64, norms as the products have them, is near: the backward takes
it by its difference (`many_near`). Its affinity is stored with a minus.

Shapes: BR rows, BC padded prototypes of CLASSES = BC / MP classes, BD features of a step.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Squared distance of a near pair, as a share of |f|^2 + |w|^2.
NEAR = tl.constexpr(1 / 64)


@triton.jit
def _direct_distances(
    p_f_row, p_w, offset, in_k, f_col, w_col,
    D: tl.constexpr, BC: tl.constexpr, BX: tl.constexpr, CT: tl.constexpr,
):  # fmt: skip
    """[BC] of |f - w_k|^2 for one row, in float64."""
    b_acc = tl.zeros([BC, BX], tl.float64)
    for d0 in tl.range(0, D, BX):
        d = d0 + tl.arange(0, BX)
        in_d = d < D
        column = d.to(tl.int64)
        b_f = tl.load(p_f_row + column * f_col, mask=in_d, other=0.0).to(CT).to(tl.float64)
        where = offset[:, None] + column[None, :] * w_col
        b_w = tl.load(p_w + where, mask=in_k[:, None] & in_d[None, :], other=0.0)
        b_difference = b_f[None, :] - b_w.to(CT).to(tl.float64)
        b_acc += b_difference * b_difference
    return tl.sum(b_acc, axis=1)


@triton.jit(do_not_specialize=["first", "rows", "dim"])
def affinities_kernel(
    p_f, p_w, p_mean, p_ratio, p_f_norm, p_w_norm, p_own, p_active, p_flag, p_sums,
    first, rows, dim, f_row, f_col, w_class, w_centre, w_col, sigma: tl.float64, margin: tl.float64,
    C: tl.constexpr, M: tl.constexpr, D: tl.constexpr, MP: tl.constexpr, TILES: tl.constexpr,
    MEAN: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr, KAPPA: tl.constexpr,
    TOLERATED: tl.constexpr, VANISHED: tl.constexpr, STORE: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, BX: tl.constexpr, GROUP: tl.constexpr,
    CT: tl.constexpr,
):  # fmt: skip
    """One tile of rows [first, first + rows) against one tile of classes.

    Writes the tile's share of each row to p_sums [TILES, 3, rows]: the number of open hinges, the
    sum of their affinities, and that of the pairs that are not near. With STORE also the active
    affinities to p_active [rows, TILES * BC] (at the nearest centre of the class, 0 where a hinge
    is closed and for the own class, with a minus where the pair is near) and to p_flag
    [row tiles, TILES] 0 where none is there, 2 where any is near, else 1.
    """
    # Programs go through GROUP row tiles at one class tile, so that both stay in the L2 cache.
    pid = tl.program_id(0)
    row_tiles = tl.cdiv(rows, BR)
    group = pid // (GROUP * TILES)
    group_rows = tl.minimum(row_tiles - group * GROUP, GROUP)
    row_tile = group * GROUP + (pid % (GROUP * TILES)) % group_rows
    tile = (pid % (GROUP * TILES)) // group_rows

    i = tl.arange(0, BR)
    local = row_tile * BR + i
    inside = local < rows
    row = first.to(tl.int64) + local
    own = tl.load(p_own + row, mask=inside, other=-1.0).to(tl.int32)
    counted = own >= 0  # [BR]
    k = tile * BC + tl.arange(0, BC)
    in_k = (k // MP < C) & (k % MP < M)
    offset = (k // MP).to(tl.int64) * w_class + (k % MP).to(tl.int64) * w_centre

    CLASSES: tl.constexpr = BC // MP
    b_acc = tl.zeros([BR, BC], CT)
    # dim is D, as a number at run time: ptxas would unroll a loop of known length into spills.
    for d0 in tl.range(0, dim, BD):
        d = d0 + tl.arange(0, BD)
        in_d = d < D
        column = d.to(tl.int64)
        f_where = row[:, None] * f_row + column[None, :] * f_col
        w_where = offset[None, :] + column[:, None] * w_col
        if D % BD == 0:
            b_f = tl.load(p_f + f_where, mask=counted[:, None], other=0.0)  # [BR, BD]
            b_w = tl.load(p_w + w_where, mask=in_k[None, :], other=0.0)  # [BD, BC]
        else:
            b_f = tl.load(p_f + f_where, mask=counted[:, None] & in_d[None, :], other=0.0)
            b_w = tl.load(p_w + w_where, mask=in_k[None, :] & in_d[:, None], other=0.0)
        if not HALF:
            b_f = b_f.to(CT)
            b_w = b_w.to(CT)
        if MEAN:
            b_mean = tl.load(p_mean + d, mask=in_d, other=0.0)
            b_f -= b_mean[None, :]
            b_w -= b_mean[:, None]
        b_part = tl.dot(b_f, b_w, input_precision=PRECISION, out_dtype=CT)
        # Tensor cores cut digits off as they add: steps are added here, where sums are rounded.
        b_acc = b_part * -2.0 + b_acc

    # Bound of the error of q / sigma, kappa (|f|^2 + |w|^2) / sigma, for the longest w of the tile.
    f_norm = tl.load(p_f_norm + row, mask=inside, other=0.0)
    w_norm = tl.load(p_w_norm + k)
    error = (KAPPA / sigma).to(CT) * (f_norm + tl.max(w_norm, axis=0))  # [BR]
    b_q = (f_norm[:, None] + w_norm[None, :]) + b_acc
    b_q = tl.where(b_q < 0.0, 0.0, b_q)  # keeps NaN, which is in doubt below
    c = tile * CLASSES + tl.arange(0, CLASSES)
    m = tl.arange(0, MP)
    if M > 1:
        b_q = tl.reshape(b_q, [BR, CLASSES, MP])
        in_class = (m < M)[None, None, :]
        b_q = tl.where(in_class, b_q, float("inf"))
        b_least = tl.min(b_q, axis=2)  # [BR, CLASSES]
        b_band = b_least + (2.0 * sigma.to(CT) * error)[:, None]
        beyond = (b_q > b_band[:, :, None]) | (in_class == 0)
        b_close = tl.sum(tl.where(beyond, 0, 1), axis=2)
        tied = b_q == b_least[:, :, None]
        b_near = tl.min(tl.where(tied, m[None, None, :], MP), axis=2)  # ties: lowest index
        b_q = b_least

    # h_ij = lambda + a_ij - s_i is open or closed beyond doubt where |h| > beta (a + 0.05): beta is
    # past twice the error of a, and 0.05 beta past the rounding of lambda - s. Solved for a:
    ratio = tl.load(p_ratio + row, mask=inside, other=0.0)
    slack = margin - tl.exp(-ratio)  # [BR]
    narrow_slack = slack.to(CT)
    beta = 2.0 * error + 8.0 * KAPPA
    sure = beta < 0.5
    open_from = tl.where(sure, (0.05 * beta - narrow_slack) / (1.0 - beta), float("inf"))
    closed_to = tl.where(sure, -(0.05 * beta + narrow_slack) / (1.0 + beta), float("-inf"))
    # An open hinge's affinity (or, of several centres, the centre) may yet not be known well
    # enough, unless the affinity is exactly 0.
    vanishes = error + VANISHED
    b_x = b_q * (1.0 / sigma).to(CT)
    b_a = tl.exp(-b_x)
    b_poor = b_x < tl.where(error > TOLERATED, vanishes, -1.0)[:, None]
    if M > 1:
        b_poor = b_poor | ((b_close > 1) & (b_x < vanishes[:, None]))
    b_open = (b_a > open_from[:, None]) & (b_poor == 0)
    looked_at = counted & (f_norm == f_norm)
    b_other = looked_at[:, None] & (c < C)[None, :] & (c[None, :] != (own // M)[:, None])
    b_closed = (b_a < closed_to[:, None]) | (b_other == 0)
    # From here on one number an entry: the affinity of an open hinge, with its minus where the pair
    # is near, -2 in doubt, -3 closed.
    b_a = tl.where(b_closed, -3.0, tl.where(b_open, b_a, -2.0))
    # Near, solved for a: above exp(-(|f|^2 + |w|^2) / (64 sigma)), for the longest w of a class.
    near_rate = (-1.0 / sigma).to(CT) * NEAR
    w_share = tl.exp(near_rate * w_norm)
    if M > 1:
        w_share = tl.min(tl.reshape(w_share, [CLASSES, MP]), axis=1)
    b_from = tl.exp(near_rate * f_norm)[:, None] * w_share[None, :]
    b_a = tl.where(b_a > b_from, -b_a, b_a)
    unsure_row = tl.max((b_a == -2.0).to(tl.int32), axis=1)  # [BR]
    # (A loop whose bound were the number of rows would be plainer: triton 3.6 fails to lay that
    # reduction of the products out for sm_100.)
    r = 0
    while r < BR:
        r = tl.min(tl.where(unsure_row > 0, i, BR), axis=0)
        if r < BR:
            unsure_row = tl.where(i == r, 0, unsure_row)
            this_row = first.to(tl.int64) + row_tile * BR + r
            p_f_row = p_f + this_row * f_row
            # Not kept in registers for the few rows that come here.
            norms = tl.load(p_f_norm + this_row) + tl.load(p_w_norm + k)  # [BC]
            q = _direct_distances(p_f_row, p_w, offset, in_k, f_col, w_col, D, BC, BX, CT)
            if M > 1:
                q = tl.where((m < M)[None, :], tl.reshape(q, [CLASSES, MP]), float("inf"))
                least = tl.min(q, axis=1)  # [CLASSES]
                near = tl.min(tl.where(q == least[:, None], m[None, :], MP), axis=1)
                q = least
                norms = tl.max(tl.reshape(norms, [CLASSES, MP]), axis=1)
            a = tl.exp(-q / sigma)
            h = tl.sum(tl.where(i == r, slack, 0.0), axis=0) + a
            # A hinge of 0 but for the rounding of float64 is closed, as one of 0 is.
            a = tl.where(h > 1e-13 * (a + 0.05), tl.where(q < NEAR * norms, -a, a), -3.0)
            b_settled = (b_a == -2.0) & (i == r)[:, None]
            b_a = tl.where(b_settled, a.to(CT)[None, :], b_a)
            if M > 1:
                b_near = tl.where(b_settled, near[None, :], b_near)

    b_open = b_a > -1.5
    b_active = tl.where(b_open, b_a, 0.0)
    p_sum = p_sums + tile.to(tl.int64) * 3 * rows + local
    tl.store(p_sum, tl.sum(b_open.to(CT), axis=1), mask=inside)
    tl.store(p_sum + rows, tl.sum(tl.abs(b_active), axis=1), mask=inside)
    tl.store(p_sum + 2 * rows, tl.sum(tl.maximum(b_active, 0.0), axis=1), mask=inside)
    if STORE:
        b_flag = tl.where(b_active < 0.0, 2, b_open.to(tl.int32))
        flag = tl.max(tl.max(b_flag, axis=1), axis=0)
        tl.store(p_flag + row_tile.to(tl.int64) * TILES + tile, flag.to(CT))
        if M > 1:
            nearest = m[None, None, :] == b_near[:, :, None]
            b_active = tl.reshape(tl.where(nearest, b_active[:, :, None], 0.0), [BR, BC])
        where = local.to(tl.int64)[:, None] * (TILES * BC) + k[None, :]
        tl.store(p_active + where, b_active, mask=inside[:, None])
