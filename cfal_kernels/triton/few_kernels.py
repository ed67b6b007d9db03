"""Few prototypes: one forward and one backward kernel, every distance by direct differences.

Shapes at a tile: b_r = BR rows, KP = CP * MP prototypes padded to powers of two, b_d = BD features.
The loss is mean or sum over programs without atomics on numbers: each program leaves its partial
sums, and the last one to finish, found by an integer ticket, adds them up in program order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formulas import row_slopes

# Columns of a saved row behind its K coefficients: slope of the own coefficient in R, m_i, and the
# own prototype (-1 for an ignored row).
BY_R = tl.constexpr(0)
FACTOR = tl.constexpr(1)
OWN = tl.constexpr(2)
#: How many there are.
ROW_EXTRA = 3
# Scalars at the head of the float64 part: R, the reduction's scale, mu.
RW = tl.constexpr(0)
SCALE = tl.constexpr(1)
MU = tl.constexpr(2)
#: How many elements the head has.
HEAD = 4


@triton.jit
def _prototypes(p_w, k, w_class, w_centre, w_col, d, D: tl.constexpr, C: tl.constexpr,
                M: tl.constexpr, MP: tl.constexpr):  # fmt: skip
    """[len(k), len(d)] prototypes of padded index k = class * MP + centre, 0 beyond them."""
    b_class = k // MP
    b_centre = k % MP
    inside = (b_class < C) & (b_centre < M)
    offset = b_class.to(tl.int64) * w_class + b_centre.to(tl.int64) * w_centre
    where = offset[:, None] + d.to(tl.int64)[None, :] * w_col
    return tl.load(p_w + where, mask=inside[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def pair_row(
    p_w, p_pairs, j, w_class, w_centre, w_col,
    D: tl.constexpr, C: tl.constexpr, M: tl.constexpr, CP: tl.constexpr, MP: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip
    """D_jk = |w_j - w_k|^2 of prototype j against all, float64, to row j of p_pairs [K, K].

    In float64 whatever the inputs: D_jk - mu cancels where training has spread the prototypes.
    """
    k = tl.arange(0, CP * MP)
    own = (j // M).to(tl.int64) * w_class + (j % M).to(tl.int64) * w_centre
    b_acc = tl.zeros([CP * MP, BP], tl.float64)
    for d0 in tl.range(0, D, BP):
        d = d0 + tl.arange(0, BP)
        b_w = _prototypes(p_w, k, w_class, w_centre, w_col, d, D, C, M, MP).to(tl.float64)
        b_j = tl.load(p_w + own + d.to(tl.int64) * w_col, mask=d < D, other=0.0).to(tl.float64)
        b_difference = b_w - b_j[None, :]  # [KP, BP]
        b_acc += b_difference * b_difference
    b_class = k // MP
    b_centre = k % MP
    column = b_class * M + b_centre
    inside = (b_class < C) & (b_centre < M)
    tl.store(p_pairs + j * (C * M) + column, tl.sum(b_acc, axis=1), mask=inside)


@triton.jit
def pair_statistics(p_pairs, K: tl.constexpr, KP: tl.constexpr):
    """(mu, R) of the pairs j < k from D [K, K], in float64 (Eq. 6).

    The mean is corrected once by the mean of the deviations, which takes out its own rounding.
    """
    j = tl.arange(0, KP)[:, None]
    k = tl.arange(0, KP)[None, :]
    inside = (j < k) & (k < K)
    count = K * (K - 1) // 2
    # What other programs have stored must not come from this multiprocessor's own cache.
    b_pairs = tl.load(p_pairs + j * K + k, mask=inside, other=0.0, cache_modifier=".cg")
    mu = tl.sum(tl.sum(b_pairs, axis=1), axis=0) / count
    b_deviation = tl.where(inside, b_pairs - mu, 0.0)
    shift = tl.sum(tl.sum(b_deviation, axis=1), axis=0) / count
    b_deviation = tl.where(inside, b_deviation - shift, 0.0)
    return mu + shift, tl.sum(tl.sum(b_deviation * b_deviation, axis=1), axis=0) / count


@triton.jit
def _finish(
    p_loss, p_head, p_pairs, p_partial, programs, rho,
    K: tl.constexpr, KP: tl.constexpr, DIVERSITY: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """The reduced loss from the partial sums [programs, 3] of m h, m and the number of rows."""
    R = tl.zeros([], tl.float64)
    if DIVERSITY:
        mu, R = pair_statistics(p_pairs, K, KP)
        tl.store(p_head + MU, mu)
    b_loss = tl.zeros([1024], tl.float64)
    b_factor = tl.zeros([1024], tl.float64)
    b_count = tl.zeros([1024], tl.float64)
    for first in tl.range(0, programs, 1024):
        i = first + tl.arange(0, 1024)
        where = p_partial + i.to(tl.int64) * 3
        b_loss += tl.load(where, mask=i < programs, other=0.0, cache_modifier=".cg")
        b_factor += tl.load(where + 1, mask=i < programs, other=0.0, cache_modifier=".cg")
        b_count += tl.load(where + 2, mask=i < programs, other=0.0, cache_modifier=".cg")
    count = tl.sum(b_count, axis=0)
    # Without a counted row nothing of R is looked at: the sum over no rows is 0.
    total = tl.sum(b_loss, axis=0)
    total += tl.where(count > 0.0, rho * R * tl.sum(b_factor, axis=0), 0.0)
    scale = tl.zeros([], tl.float64) + 1.0
    if MEAN:
        total = total / count  # 0 / 0: the mean over no rows is NaN
        scale = tl.where(count > 0.0, 1.0 / tl.where(count > 0.0, count, 1.0), 0.0)
    tl.store(p_loss, total.to(p_loss.dtype.element_ty))
    tl.store(p_head + RW, R)
    tl.store(p_head + SCALE, scale)


@triton.jit(do_not_specialize=["rows", "row_programs", "ignore_index"])
def forward_kernel(
    p_f, p_w, p_y, p_omega, p_loss, p_saved, p_ticket,
    rows, row_programs, f_row, f_col, w_class, w_centre, w_col, y_stride, omega_stride,
    ignore_index,
    sigma: tl.float64, margin: tl.float64, gamma: tl.float64, rho: tl.float64,
    C: tl.constexpr, M: tl.constexpr, D: tl.constexpr, CP: tl.constexpr, MP: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr, CT: tl.constexpr,
    KIND: tl.constexpr, DETACH: tl.constexpr, WEIGHTS: tl.constexpr, DIVERSITY: tl.constexpr,
    REDUCTION: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Loss and coefficients c_ij of all rows, and the pair distances, in one launch.

    Programs [0, K) take one prototype's pairs each where there is a diversity term, the others BR
    rows each. The saved buffer begins with its float64 part: HEAD scalars, pairs [K, K] and rows +
    4 elements for partial sums (or m_i, for the reduction "none"); the rows [B, K + 3] of
    coefficients follow. p_ticket holds 0 before and after.
    """
    K: tl.constexpr = C * M
    p_head = p_saved.to(tl.pointer_type(tl.float64))
    p_pairs = p_head + 4
    p_partial = p_pairs + K * K
    p_rows = (p_partial + rows.to(tl.int64) + 4).to(tl.pointer_type(CT))
    pid = tl.program_id(0)
    pair_programs = K if DIVERSITY else 0
    if pid < pair_programs:
        pair_row(p_w, p_pairs, pid, w_class, w_centre, w_col, D, C, M, CP, MP, BP)
    else:
        block = pid - pair_programs
        row = block.to(tl.int64) * BR + tl.arange(0, BR)
        inside = row < rows
        y = tl.load(p_y + row * y_stride, mask=inside, other=0).to(tl.int64)
        counted = inside & (y != ignore_index)  # [BR]
        valid = (y >= 0) & (y < C)
        tl.device_assert(valid | (counted == 0), "cfal: target out of range")
        # The assertion ends the launch a little later: until then no class is out of bounds.
        y = tl.where(counted & valid, y, 0).to(tl.int32)

        k = tl.arange(0, CP * MP)
        b_acc = tl.zeros([BR, CP * MP, BD], CT)
        b_f_poison = tl.zeros([BR, BD], CT)
        b_w_poison = tl.zeros([CP * MP, BD], CT)
        for d0 in tl.range(0, D, BD):
            d = d0 + tl.arange(0, BD)
            where = row[:, None] * f_row + d.to(tl.int64)[None, :] * f_col
            b_f = tl.load(p_f + where, mask=counted[:, None] & (d < D)[None, :], other=0.0).to(CT)
            b_w = _prototypes(p_w, k, w_class, w_centre, w_col, d, D, C, M, MP).to(CT)
            b_difference = b_f[:, None, :] - b_w[None, :, :]  # [BR, KP, BD]
            b_acc += b_difference * b_difference
            # 0 for finite values, NaN for inf and NaN, which comparisons would swallow.
            b_f_poison += b_f * 0.0
            b_w_poison += b_w * 0.0
        poison = tl.sum(b_f_poison, axis=1) + tl.sum(tl.sum(b_w_poison, axis=1), axis=0)
        poison = poison.to(tl.float64)  # [BR]
        b_q = tl.sum(b_acc, axis=2).to(tl.float64)  # [BR, KP]

        c = tl.arange(0, CP)
        m = tl.arange(0, MP)
        if M > 1:
            b_q = tl.reshape(b_q, [BR, CP, MP])
            b_q = tl.where((m < M)[None, None, :], b_q, float("inf"))
            b_least = tl.min(b_q, axis=2)  # [BR, CP]
            tied = b_q == b_least[:, :, None]
            b_near = tl.min(tl.where(tied, m[None, None, :], MP), axis=2)  # ties: lowest index
            b_near = tl.where(b_near < M, b_near, 0)
        else:
            b_least = b_q
            b_near = tl.zeros([BR, CP], tl.int32)

        # a_ij = exp(-q_ij / sigma), h_ij = max(0, lambda + a_ij - s_i) for j != y_i
        own = c[None, :] == y[:, None]  # [BR, CP]
        others = (c < C)[None, :] & (own == 0)
        ratio = tl.sum(tl.where(own, b_least, 0.0), axis=1) / sigma  # [BR]
        s = tl.exp(-ratio)
        b_a = tl.exp(-(b_least / sigma))
        b_h = margin + b_a - s[:, None]
        open_ = (b_h > 0.0) & others
        hinge_sum = tl.sum(tl.where(open_, b_h, 0.0), axis=1) + poison
        active = tl.sum(tl.where(open_, 1.0, 0.0).to(tl.float64), axis=1)
        omega = tl.zeros([BR], tl.float64) + 1.0
        if WEIGHTS:
            omega = tl.load(p_omega + y.to(tl.int64) * omega_stride).to(tl.float64)
        factor, c_own, by_r = row_slopes(
            ratio, hinge_sum, active, omega, sigma, gamma, rho, KIND, DETACH
        )
        loss = tl.where(counted, factor * hinge_sum, 0.0)
        factor = tl.where(counted, factor, 0.0)

        if SAVE:
            # c_ij = (2 / sigma) a_ij m_i for open hinges, at the nearest centre of the class
            b_c = tl.where(open_, (2.0 / sigma) * b_a * factor[:, None], 0.0)
            b_c = tl.where(own, c_own[:, None], b_c) + poison[:, None]  # [BR, CP]
            b_c = tl.where(counted[:, None], b_c, 0.0)
            near_own = tl.sum(tl.where(own, b_near, 0), axis=1)
            if M > 1:
                nearest = m[None, None, :] == b_near[:, :, None]
                b_c = tl.reshape(tl.where(nearest, b_c[:, :, None], 0.0), [BR, CP * MP])
            column = (k // MP) * M + k % MP
            real = ((k // MP) < C) & ((k % MP) < M)
            p_row = p_rows + row * (K + 3)  # [BR]
            b_where = p_row[:, None] + column[None, :]
            tl.store(b_where, b_c.to(CT), mask=inside[:, None] & real[None, :])
            tl.store(p_row + K + BY_R, tl.where(counted, by_r, 0.0).to(CT), mask=inside)
            tl.store(p_row + K + FACTOR, factor.to(CT), mask=inside)
            centre = tl.where(counted, y * M + near_own, -1)
            tl.store(p_row + K + OWN, centre.to(CT), mask=inside)
        if REDUCTION == 0:
            tl.store(p_loss + row, loss.to(CT), mask=inside)
            tl.store(p_partial + row, factor, mask=inside)
        else:
            where = p_partial + block.to(tl.int64) * 3
            tl.store(where, tl.sum(loss, axis=0))
            tl.store(where + 1, tl.sum(factor, axis=0))
            tl.store(where + 2, tl.sum(tl.where(counted, 1.0, 0.0).to(tl.float64), axis=0))

    if REDUCTION != 0:
        # Every store of the program precedes its ticket, and every ticket the last one's loads.
        tl.debug_barrier()
        ticket = tl.atomic_add(p_ticket, 1, sem="acq_rel", scope="gpu")
        if ticket == pair_programs + row_programs - 1:
            tl.store(p_ticket, 0)
            _finish(
                p_loss, p_head, p_pairs, p_partial, row_programs, rho,
                K, CP * MP, DIVERSITY, REDUCTION == 1,
            )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def finish_rows_kernel(
    p_loss, p_saved, rows, rho: tl.float64,
    K: tl.constexpr, KP: tl.constexpr, DIVERSITY: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """For the reduction "none": loss_i += rho R m_i, and the head of the saved buffer.

    Every program forms R from the pairs by itself, in the same order.
    """
    p_head = p_saved.to(tl.pointer_type(tl.float64))
    R = tl.zeros([], tl.float64)
    mu = tl.zeros([], tl.float64)
    if DIVERSITY:
        mu, R = pair_statistics(p_head + 4, K, KP)
    if tl.program_id(0) == 0:
        tl.store(p_head + RW, R)
        tl.store(p_head + SCALE, 1.0)
        tl.store(p_head + MU, mu)
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    inside = row < rows
    factor = tl.load(p_head + 4 + K * K + row, mask=inside, other=0.0)
    loss = tl.load(p_loss + row, mask=inside, other=0.0).to(tl.float64)
    loss += tl.where(factor == 0.0, 0.0, rho * R * factor)
    tl.store(p_loss + row, loss.to(p_loss.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "chunk_rows"])
def backward_kernel(
    p_grad, p_saved, p_f, p_w, p_grad_f, p_grad_w, p_partial, p_ticket,
    rows, chunk_rows, grad_stride, f_row, f_col, w_class, w_centre, w_col, rho: tl.float64,
    C: tl.constexpr, M: tl.constexpr, D: tl.constexpr, KP: tl.constexpr, SPLIT: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, CT: tl.constexpr,
    DIVERSITY: tl.constexpr, NEED_F: tl.constexpr, NEED_W: tl.constexpr,
):  # fmt: skip
    """Both gradients in one launch: a program owns BD columns of a chunk of rows.

        grad_f_i = -sum_j e_ij (f_i - w_j)
        grad_w_j = sum_i e_ij (f_i - w_j) + G sum_k E_jk (w_j - w_k)

    with e_ij = g_i c_ij, E_jk = (4 / P) (D_jk - mu) and G = rho sum_i g_i m_i. SPLIT says whether
    there are several chunks; their number, which varies with the batch, is no constant, or every
    batch size would be compiled anew. The program that finishes a tile of columns last adds the
    chunks in order: p_partial holds [tiles, chunks] of G in float64, then [chunks, K, D] of grad_w.
    p_ticket has one 0 for each tile.
    """
    K: tl.constexpr = C * M
    p_head = p_saved.to(tl.pointer_type(tl.float64))
    p_rows = (p_head + 4 + K * K + rows.to(tl.int64) + 4).to(tl.pointer_type(CT))
    tile = tl.program_id(0)
    chunk = tl.program_id(1)
    d = tile * BD + tl.arange(0, BD)
    in_d = d < D
    k = tl.arange(0, KP)
    in_k = k < K
    w_offset = (k // M).to(tl.int64) * w_class + (k % M).to(tl.int64) * w_centre
    w_where = w_offset[:, None] + d.to(tl.int64)[None, :] * w_col
    w_mask = in_k[:, None] & in_d[None, :]
    b_w = tl.load(p_w + w_where, mask=w_mask, other=0.0).to(CT)  # [KP, BD]
    R = tl.load(p_head + RW)
    scale = tl.load(p_head + SCALE)

    b_grad_w = tl.zeros([KP, BD], CT)
    G = tl.zeros([], tl.float64)
    first = chunk.to(tl.int64) * chunk_rows
    last = tl.minimum(first + chunk_rows, rows)
    for start in tl.range(first, last, BR):
        row = start + tl.arange(0, BR)
        inside = row < last
        p_row = p_rows + row * (K + 3)
        own = tl.load(p_row + K + OWN, mask=inside, other=-1.0).to(tl.int32)
        counted = own >= 0  # [BR]
        g = tl.load(p_grad + row * grad_stride, mask=counted, other=0.0).to(tl.float64) * scale
        b_c = tl.load(p_row[:, None] + k[None, :], mask=counted[:, None] & in_k[None, :], other=0.0)
        if DIVERSITY:
            by_r = tl.load(p_row + K + BY_R, mask=counted, other=0.0).to(tl.float64) * R
            b_extra = tl.where(k[None, :] == own[:, None], by_r[:, None], 0.0)
            b_e = ((b_c.to(tl.float64) + b_extra) * g[:, None]).to(CT)  # [BR, KP]
            factor = tl.load(p_row + K + FACTOR, mask=counted, other=0.0).to(tl.float64)
            G += tl.sum(g * factor, axis=0)
        else:
            b_e = (b_c.to(tl.float64) * g[:, None]).to(CT)
        # An ignored row is not read: its gradient is 0 whatever it holds.
        where = row[:, None] * f_row + d.to(tl.int64)[None, :] * f_col
        b_f = tl.load(p_f + where, mask=counted[:, None] & in_d[None, :], other=0.0).to(CT)
        b_pull = b_e[:, :, None] * (b_f[:, None, :] - b_w[None, :, :])  # [BR, KP, BD]
        if NEED_F:
            # Nor does it see a prototype that is NaN.
            b_grad_f = tl.where(counted[:, None], -tl.sum(b_pull, axis=1), 0.0)  # [BR, BD]
            to = p_grad_f + row[:, None] * D + d[None, :]
            mask = inside[:, None] & in_d[None, :]
            tl.store(to, b_grad_f.to(p_grad_f.dtype.element_ty), mask=mask)
        if NEED_W:
            b_grad_w += tl.sum(b_pull, axis=0)

    if NEED_W:
        to_w = k.to(tl.int64)[:, None] * D + d[None, :]  # [KP, BD]
        if not SPLIT:
            b_total = b_grad_w.to(tl.float64)
            G_total = G
            finishing = chunk == 0
        else:
            tiles = tl.num_programs(0)
            chunks = tl.num_programs(1)
            p_parts = (p_partial + tiles.to(tl.int64) * chunks).to(tl.pointer_type(CT))
            tl.store(p_partial + tile * chunks + chunk, G)
            tl.store(p_parts + chunk.to(tl.int64) * (K * D) + to_w, b_grad_w, mask=w_mask)
            tl.debug_barrier()
            ticket = tl.atomic_add(p_ticket + tile, 1, sem="acq_rel", scope="gpu")
            finishing = ticket == chunks - 1
            b_total = tl.zeros([KP, BD], tl.float64)
            G_total = tl.zeros([], tl.float64)
            if finishing:
                tl.store(p_ticket + tile, 0)
                for i in tl.range(0, chunks):
                    G_total += tl.load(p_partial + tile * chunks + i, cache_modifier=".cg")
                    p_part = p_parts + tl.cast(i, tl.int64) * (K * D)
                    b_part = tl.load(p_part + to_w, mask=w_mask, other=0.0, cache_modifier=".cg")
                    b_total += b_part.to(tl.float64)
        if finishing:
            if DIVERSITY:
                # G (4 / P) sum_k (D_jk - mu) (w_j - w_k); the own distance is no pair.
                mu = tl.load(p_head + MU)
                pull = rho * G_total * (8.0 / (K * (K - 1)))
                b_self = b_w.to(tl.float64)
                b_extra = tl.zeros([KP, BD], tl.float64)
                for other in tl.range(0, K):
                    from_pair = p_head + 4 + other * K + k
                    b_pair = tl.load(from_pair, mask=in_k & (k != other), other=0.0)
                    b_pair = tl.where(in_k & (k != other), b_pair - mu, 0.0)  # [KP]
                    offset = tl.cast(other // M, tl.int64) * w_class
                    offset += tl.cast(other % M, tl.int64) * w_centre
                    p_other = p_w + offset + d.to(tl.int64) * w_col
                    b_other = tl.load(p_other, mask=in_d, other=0.0).to(tl.float64)  # [BD]
                    b_extra += b_pair[:, None] * (b_self - b_other[None, :])
                b_total += tl.where(G_total == 0.0, 0.0, pull * b_extra)
            tl.store(p_grad_w + to_w, b_total.to(CT).to(p_grad_w.dtype.element_ty), mask=w_mask)
