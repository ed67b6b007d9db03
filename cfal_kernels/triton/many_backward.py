"""Many prototypes, backward: products of active affinities A with prototypes and with features.

    grad_f_i = v_i (sum_j A_ij w_j - (sum_j A_ij) f_i) - o_i (f_i - w_y)
    grad_w_j = sum_i v_i A_ij f_i - (sum_i v_i A_ij) w_j + sum_{y_i = j} o_i (f_i - w_j) + G dR/dw_j

with v_i = g_i (2 / sigma) m_i, o_i = g_i c_iy and G = rho sum_i g_i m_i; about the prototypes'
mean with MEAN. Near pairs are 0 in these sums and go by their differences (`many_near`): a line of
tiles that has some is empty to the first launch, which holds nothing but products, and the whole
work of a second, with NEAR. A program owns what it writes: rows for grad_f, prototypes for grad_w.
Tiles of A that are all 0 are not on its list. Shapes: tiles of BR rows and BC padded prototypes, BD
features, BS rows or prototypes of a step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .many_near import add_near_prototypes, add_near_rows


@triton.jit(do_not_specialize=["length", "stride", "step"])
def list_kernel(p_flag, p_list, p_near, p_count, length, stride, step, BLOCK: tl.constexpr):
    """Of one line of flags [length]: the indices of open tiles, and of those with near pairs.

    p_list and p_near [lines, length] hold them in order. p_count [lines, 3] holds how many are
    open, in the first place if no pair is near, else in the second; and how many have near pairs.
    """
    line = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    begin = line.to(tl.int64) * length
    count = 0
    near_count = 0
    for start in tl.range(0, length, BLOCK):
        index = start + i
        where = p_flag + line.to(tl.int64) * stride + index.to(tl.int64) * step
        flag = tl.load(where, mask=index < length, other=0.0)
        b_set = (flag > 0.0).to(tl.int32)
        position = count + tl.cumsum(b_set, axis=0) - b_set
        tl.store(p_list + begin + position, index, mask=b_set > 0)
        count += tl.sum(b_set, axis=0)
        b_near = (flag > 1.0).to(tl.int32)
        position = near_count + tl.cumsum(b_near, axis=0) - b_near
        tl.store(p_near + begin + position, index, mask=b_near > 0)
        near_count += tl.sum(b_near, axis=0)
    tl.store(p_count + 3 * line, tl.where(near_count > 0, 0, count))
    tl.store(p_count + 3 * line + 1, tl.where(near_count > 0, count, 0))
    tl.store(p_count + 3 * line + 2, near_count)


@triton.jit
def _add_product(b_a, b_x, b_acc, PARTS: tl.constexpr, PRECISION: tl.constexpr, CT: tl.constexpr):
    """b_acc + b_a @ b_x for b_a of the compute type.

    With PARTS, b_x is bfloat16 and b_a goes as that many bfloat16 terms: 8 bits each, exact
    products, sums in float32. Steps are added outside the tensor cores, which cut digits off.
    """
    if PARTS > 0:
        b_high = b_a.to(tl.bfloat16)
        if PARTS > 1:
            b_low = (b_a - b_high.to(tl.float32)).to(tl.bfloat16)
            b_part = tl.dot(b_high, b_x, tl.dot(b_low, b_x))
        else:
            b_part = tl.dot(b_high, b_x)
    else:
        b_part = tl.dot(b_a, b_x, input_precision=PRECISION, out_dtype=CT)
    return b_part * 1.0 + b_acc


@triton.jit
def _features_of(
    p_f, p_mean, row, counted, d, f_row, f_col,
    D: tl.constexpr, BD: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """[BR, BD] of f, with MEAN about the mean in the compute type; 0 for ignored rows."""
    where = row[:, None] * f_row + d.to(tl.int64)[None, :] * f_col
    mask = counted[:, None]
    if D % BD != 0:
        mask = mask & (d < D)[None, :]
    b_f = tl.load(p_f + where, mask=mask, other=0.0)
    if MEAN:
        b_mean = tl.load(p_mean + d, mask=d < D, other=0.0)
        b_f = b_f.to(b_mean.dtype) - tl.where(counted[:, None], b_mean[None, :], 0.0)
    return b_f


@triton.jit
def _prototypes_of(
    p_w, p_mean, k, d, w_class, w_centre, w_col,
    C: tl.constexpr, M: tl.constexpr, D: tl.constexpr, MP: tl.constexpr, BD: tl.constexpr,
    MEAN: tl.constexpr,
):  # fmt: skip
    """[BC, BD] of the prototypes of padded index k, about the mean with MEAN; 0 for padding."""
    in_k = (k // MP < C) & (k % MP < M)
    offset = (k // MP).to(tl.int64) * w_class + (k % MP).to(tl.int64) * w_centre
    mask = in_k[:, None]
    if D % BD != 0:
        mask = mask & (d < D)[None, :]
    where = offset[:, None] + d.to(tl.int64)[None, :] * w_col
    b_w = tl.load(p_w + where, mask=mask, other=0.0)
    if MEAN:
        b_mean = tl.load(p_mean + d, mask=d < D, other=0.0)
        b_w = b_w.to(b_mean.dtype) - tl.where(in_k[:, None], b_mean[None, :], 0.0)
    return b_w


@triton.jit
def _finish_features(
    b_acc, p_f, p_w, p_mean, p_own, p_sum, p_pull, p_pull_own, p_grad_f, row, inside, d,
    f_row, f_col, w_class, w_centre, w_col,
    M: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, MEAN: tl.constexpr, CT: tl.constexpr,
):  # fmt: skip
    """Writes grad_f of rows from sum_j A_ij w_j; the own class is never split into two terms."""
    own = tl.load(p_own + row, mask=inside, other=-1.0).to(tl.int64)
    counted = own >= 0  # [BR]
    b_f = _features_of(p_f, p_mean, row, counted, d, f_row, f_col, D, BD, False).to(CT)
    offset = own // M * w_class + own % M * w_centre
    where = offset[:, None] + d.to(tl.int64)[None, :] * w_col
    b_w = tl.load(p_w + where, mask=counted[:, None] & (d < D)[None, :], other=0.0).to(CT)
    b_own = tl.load(p_pull_own + row, mask=inside, other=0.0)[:, None] * (b_f - b_w)
    if MEAN:
        b_f -= tl.load(p_mean + d, mask=d < D, other=0.0)[None, :]
    sum_ = tl.load(p_sum + row, mask=inside, other=0.0)
    pull = tl.load(p_pull + row, mask=inside, other=0.0)
    b_grad = pull[:, None] * (b_acc - sum_[:, None] * b_f) - b_own
    # The gradient of an ignored row is 0, whatever it holds.
    b_grad = tl.where(counted[:, None], b_grad, 0.0)
    to = p_grad_f + row[:, None] * D + d[None, :]
    tl.store(to, b_grad.to(p_grad_f.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["splits", "first", "rows"])
def features_kernel(
    p_active, p_list, p_near, p_count,
    p_f, p_w, p_mean, p_own, p_sum, p_pull, p_pull_own, p_grad_f, p_part,
    splits, first, rows, f_row, f_col, w_class, w_centre, w_col,
    C: tl.constexpr, M: tl.constexpr, D: tl.constexpr, MP: tl.constexpr, TILES: tl.constexpr,
    MEAN: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, WHOLE: tl.constexpr,
    NEAR: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, CT: tl.constexpr,
):  # fmt: skip
    """grad_f of a tile of rows [first, first + rows) and BD columns.

    A program that does not take the WHOLE of the row tile's open tiles takes its share of them, and
    leaves a part [splits, rows, D] for `finish_features_kernel`. With NEAR it writes over what was
    left for a row tile with near pairs.
    """
    pid = tl.program_id(0)
    columns = tl.cdiv(D, BD)
    split = pid % splits
    d = (pid // splits) % columns * BD + tl.arange(0, BD)
    row_tile = pid // (splits * columns)
    local = row_tile.to(tl.int64) * BR + tl.arange(0, BR)
    inside = local < rows
    count = tl.load(p_count + 3 * row_tile + NEAR)
    if NEAR:  # noqa: SIM102 (known when compiled)
        if count == 0:
            return
    b_acc = tl.zeros([BR, BD], CT)
    STEPS: tl.constexpr = BC // BS
    for n in tl.range(count * split // splits * STEPS, count * (split + 1) // splits * STEPS):
        tile = tl.load(p_list + row_tile * TILES + n // STEPS)
        k = tile * BC + n % STEPS * BS + tl.arange(0, BS)
        where = local[:, None] * (TILES * BC) + k[None, :]
        b_a = tl.load(p_active + where, mask=inside[:, None], other=0.0)  # [BR, BS]
        if NEAR:
            b_a = tl.maximum(b_a, 0.0)
        b_w = _prototypes_of(
            p_w, p_mean, k, d, w_class, w_centre, w_col, C, M, D, MP, BD, MEAN
        )  # fmt: skip
        if PARTS == 0:
            b_w = b_w.to(CT)
        b_acc = _add_product(b_a, b_w, b_acc, PARTS, PRECISION, CT)
    if NEAR:
        near_count = tl.load(p_count + 3 * row_tile + 2)
        b_acc = add_near_prototypes(
            b_acc, p_active + local * (TILES * BC), p_near + row_tile * TILES,
            near_count * split // splits, near_count * (split + 1) // splits,
            p_f, p_w, first.to(tl.int64) + local, inside, d,
            f_row, f_col, w_class, w_centre, w_col, D, MP, BC,
        )  # fmt: skip
    if WHOLE:
        _finish_features(
            b_acc, p_f, p_w, p_mean, p_own, p_sum, p_pull, p_pull_own, p_grad_f,
            first.to(tl.int64) + local, inside, d, f_row, f_col, w_class, w_centre, w_col,
            M, D, BD, MEAN, CT,
        )  # fmt: skip
    else:
        to = p_part + (split * rows + local)[:, None] * D + d[None, :]
        tl.store(to, b_acc, mask=inside[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["splits", "first", "rows"])
def finish_features_kernel(
    p_f, p_w, p_mean, p_own, p_sum, p_pull, p_pull_own, p_grad_f, p_part,
    splits, first, rows, f_row, f_col, w_class, w_centre, w_col,
    M: tl.constexpr, D: tl.constexpr, MEAN: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr, CT: tl.constexpr,
):  # fmt: skip
    """grad_f from parts [splits, rows, D], added in their order."""
    local = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = local < rows
    b_acc = tl.zeros([BR, BD], CT)
    for split in tl.range(0, splits):
        where = p_part + (split * rows + local)[:, None] * D + d[None, :]
        b_acc += tl.load(where, mask=inside[:, None] & (d < D)[None, :], other=0.0)
    _finish_features(
        b_acc, p_f, p_w, p_mean, p_own, p_sum, p_pull, p_pull_own, p_grad_f,
        first.to(tl.int64) + local, inside, d, f_row, f_col, w_class, w_centre, w_col,
        M, D, BD, MEAN, CT,
    )  # fmt: skip


@triton.jit(do_not_specialize=["splits", "first", "rows", "row_tiles"])
def prototypes_kernel(
    p_active, p_list, p_near, p_count, p_f, p_w, p_mean, p_own, p_pull, p_part,
    splits, first, rows, f_row, f_col, w_class, w_centre, w_col, row_tiles,
    C: tl.constexpr, M: tl.constexpr, D: tl.constexpr, MP: tl.constexpr, TILES: tl.constexpr,
    MEAN: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, ADD: tl.constexpr,
    NEAR: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, CT: tl.constexpr,
):  # fmt: skip
    """What rows [first, first + rows) add to grad_w of a tile of classes and BD columns.

    Split n writes part n of p_part [splits, TILES * BC, D], or with ADD adds to what is there: of
    an earlier chunk of rows or, with NEAR, nothing of this one yet for a tile with near pairs. The
    own class has no part in it: `finish_prototypes_kernel` adds that.
    """
    pid = tl.program_id(0)
    columns = tl.cdiv(D, BD)
    split = pid % splits
    d = (pid // splits) % columns * BD + tl.arange(0, BD)
    tile = pid // (splits * columns)
    k = tile * BC + tl.arange(0, BC)
    count = tl.load(p_count + 3 * tile + NEAR)
    if NEAR:  # noqa: SIM102 (known when compiled)
        if count == 0:
            return
    b_acc = tl.zeros([BC, BD], CT)
    b_sum = tl.zeros([BC], CT)
    STEPS: tl.constexpr = BR // BS
    for n in tl.range(count * split // splits * STEPS, count * (split + 1) // splits * STEPS):
        row_tile = tl.load(p_list + tile * row_tiles + n // STEPS)
        local = row_tile.to(tl.int64) * BR + n % STEPS * BS + tl.arange(0, BS)
        inside = local < rows
        row = first.to(tl.int64) + local
        counted = tl.load(p_own + row, mask=inside, other=-1.0) >= 0.0
        pull = tl.load(p_pull + row, mask=inside, other=0.0)
        where = local[None, :] * (TILES * BC) + k[:, None]
        b_a = tl.load(p_active + where, mask=inside[None, :], other=0.0)  # [BC, BS]
        # 0 stays 0 also where the pull of a row is not finite.
        if NEAR:
            b_a = tl.maximum(b_a, 0.0)
        b_e = tl.where(b_a == 0.0, 0.0, b_a * pull[None, :])
        b_f = _features_of(p_f, p_mean, row, counted, d, f_row, f_col, D, BD, MEAN)
        if PARTS == 0:
            b_f = b_f.to(CT)
        b_acc = _add_product(b_e, b_f, b_acc, PARTS, PRECISION, CT)
        b_sum += tl.sum(b_e, axis=1)
    b_w = _prototypes_of(p_w, p_mean, k, d, w_class, w_centre, w_col, C, M, D, MP, BD, MEAN)
    b_acc -= b_sum[:, None] * b_w.to(CT)
    if NEAR:
        near_count = tl.load(p_count + 3 * tile + 2)
        b_acc = add_near_rows(
            b_acc, p_active, p_near + tile * row_tiles, near_count * split // splits,
            near_count * (split + 1) // splits, p_f, p_w, p_pull, first, rows, k, d,
            f_row, f_col, w_class, w_centre, w_col, C, M, D, MP, TILES * BC, BR,
        )  # fmt: skip
    to = p_part + (split * (TILES * BC) + k).to(tl.int64)[:, None] * D + d[None, :]
    mask = (d < D)[None, :]
    if ADD:
        b_acc += tl.load(to, mask=mask, other=0.0)
    tl.store(to, b_acc, mask=mask)


@triton.jit(do_not_specialize=["parts"])
def finish_prototypes_kernel(
    p_part, p_order, p_start, p_f, p_w, p_pull_own, p_diversity, p_total, p_grad_w,
    parts, f_row, f_col, w_class, w_centre, w_col,
    M: tl.constexpr, D: tl.constexpr, MP: tl.constexpr, PADDED: tl.constexpr,
    DIVERSITY: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, CT: tl.constexpr,
):  # fmt: skip
    """grad_w of one prototype and BD columns: parts, its own rows in order, G dR/dw.

    p_order holds rows sorted by own centre, those of centre j from p_start[j] to p_start[j + 1].
    """
    j = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    in_d = d < D
    column = d.to(tl.int64)
    k = (j // M * MP + j % M).to(tl.int64)
    b_total = tl.zeros([BD], tl.float64)
    for part in tl.range(0, parts):
        where = p_part + (k + part * PADDED) * D + d
        b_total += tl.load(where, mask=in_d, other=0.0).to(tl.float64)
    # o_i (f_i - w_j): the small difference of a trained model, never split into two terms
    offset = (j // M).to(tl.int64) * w_class + (j % M).to(tl.int64) * w_centre
    b_w = tl.load(p_w + offset + column * w_col, mask=in_d, other=0.0).to(CT)
    last = tl.load(p_start + j + 1)
    for start in tl.range(tl.load(p_start + j), last, BR):
        n = start + tl.arange(0, BR)
        row = tl.load(p_order + n, mask=n < last, other=0)  # [BR]
        pull = tl.load(p_pull_own + row, mask=n < last, other=0.0)
        where = row[:, None] * f_row + column[None, :] * f_col
        mask = (n < last)[:, None] & in_d[None, :]
        b_f = tl.load(p_f + where, mask=mask, other=0.0).to(CT)  # [BR, BD]
        b_pull = tl.where(mask, pull[:, None] * (b_f - b_w[None, :]), 0.0)
        b_total += tl.sum(b_pull, axis=0).to(tl.float64)
    to = j.to(tl.int64) * D + d
    if DIVERSITY:
        total = tl.load(p_total)
        b_slope = tl.load(p_diversity + to, mask=in_d, other=0.0)
        b_total += tl.where(total == 0.0, 0.0, total * b_slope)
    tl.store(p_grad_w + to, b_total.to(CT).to(p_grad_w.dtype.element_ty), mask=in_d)
