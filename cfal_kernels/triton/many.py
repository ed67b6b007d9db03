"""Many prototypes on the host: allocates, picks the launch shapes, launches.

The forward: norms and own distances; R; then, some rows at a time, tiles of affinities and the
losses of their rows. The backward takes the affinities that were kept, then some rows at a time
those that were not, computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import config, formulas, many_diversity
from . import many_affinities as affinities
from . import many_backward as gradients
from . import many_rows as by_row
from .few import NONE, TRITON_DTYPE
from .interpreter import double
from .many_saved import Layout, Saved, products_of_halves

#: Of a product, in the error bound kappa (|f|^2 + |w|^2) of a distance: what steps of 64 features
#: cut off in a tensor core, the rounding of their sum, and what tf32x3 leaves out.
KAPPA = {torch.float32: 1.5e-6, torch.float64: 2e-15}
#: Bound of the error of q / sigma that is passed on; beyond it an entry is computed directly. The
#: error itself stays about ten times below its bound.
TOLERATED = {torch.float32: 4e-5, torch.float64: 1e-12}
#: q / sigma from which on the affinity is 0.
VANISHED = {torch.float32: 104.0, torch.float64: 746.0}
_ROW_PROGRAM = 128


@dataclass(frozen=True)
class Plan:
    """What the launches of one call have in common."""

    features: Tensor
    prototypes: Tensor
    compute: torch.dtype
    tile: config.ManyTile
    layout: Layout
    half: bool
    precision: str
    parts: int

    @staticmethod
    def of(features: Tensor, prototypes: Tensor, compute: torch.dtype) -> Plan:
        """For features [B, D] and prototypes [C, M, D]."""
        rows, dim = features.shape
        classes, centres, _ = prototypes.shape
        half = products_of_halves(features, prototypes)
        in_parts = half and features.dtype == torch.bfloat16
        tile = config.many_tile(rows, classes, centres, dim, compute.itemsize, half, in_parts)
        layout = Layout.of(features, prototypes, compute)
        precision, parts = product_precision(compute)
        parts = parts if in_parts else 0
        return Plan(features, prototypes, compute, tile, layout, half, precision, parts)

    @property
    def centred(self) -> bool:
        """Whether products are about the mean: half inputs go to the tensor cores as they are."""
        return not self.half

    @property
    def strides(self) -> tuple[int, ...]:
        """Of features and prototypes."""
        return (*self.features.stride(), *self.prototypes.stride())

    def sizes(self, **more: Any) -> dict[str, Any]:
        """The constants that most kernels take."""
        classes, centres, dim = self.prototypes.shape
        return {
            "C": classes, "M": centres, "D": dim, "MEAN": self.centred,
            "CT": TRITON_DTYPE[self.compute], **more,
        }  # fmt: skip

    def out_columns(self, near: bool) -> int:
        """Features of a tile of a gradient: sums and differences of near pairs take registers."""
        return max(16, self.tile.b_o // 2) if near else self.tile.b_o

    def products(self, near: bool) -> dict[str, Any]:
        """The constants of the kernels with products of affinities."""
        tile = self.tile
        # Left alone, ptxas spills a few addresses out of the loops over near pairs to be under 128.
        more = {"maxnreg": 255} if near else {}
        return self.sizes(
            MP=tile.m_p, TILES=self.layout.tiles, PARTS=self.parts, PRECISION=self.precision,
            NEAR=int(near), BR=tile.b_r, BC=tile.b_c, BD=self.out_columns(near), BS=tile.b_s,
            num_warps=tile.num_warps, num_stages=tile.num_stages, **more,
        )  # fmt: skip


def product_precision(compute: torch.dtype) -> tuple[str, int]:
    """(input precision of float32 products, bfloat16 terms of an affinity), as torch allows them.

    TensorFloat-32 only where the user allowed it for matrix products, and one term of 8 bits only
    where they set the float32 matmul precision to "medium".
    """
    if compute == torch.float64:
        return "ieee", 0
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    try:
        medium = torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:  # refuses to answer once the newer switches were used
        medium = False
    return "tf32" if allowed else "tf32x3", 1 if medium else 2


def _blocks(n: int, block: int) -> int:
    return max(1, -(-n // block))


def _chunks(first: int, last: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, step):
        yield start, min(step, last - start)


def forward(
    features: Tensor,
    prototypes: Tensor,
    target: Tensor,
    class_weights: Tensor | None,
    sigma: float,
    margin: float,
    gamma: float,
    diversity_weight: float,
    detach_focal: bool,
    reduction: int,
    ignore_index: int,
    compute: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """The loss (scalar or [B]) and the saved buffer; arguments as in `few.forward`."""
    plan = Plan.of(features, prototypes, compute)
    layout, tile = plan.layout, plan.tile
    rows, dim = features.shape
    classes, centres, _ = prototypes.shape
    if not save:
        layout = Layout(rows, layout.tiles, layout.columns, dim, 0, layout.wide)
    buffer = features.new_empty((layout.numel,), dtype=compute)
    saved = Saved(buffer, layout)
    loss = features.new_empty((rows,) if reduction == NONE else (), dtype=compute)
    row_blocks = _blocks(rows, _ROW_PROGRAM)
    partial = features.new_empty((2 * row_blocks,), dtype=torch.float64)

    measure(plan, saved, target, ignore_index, sigma)
    diversity = diversity_weight != 0.0 and classes * centres > 2
    if diversity:
        saved.head[0].copy_(many_diversity.value(prototypes))
    step = max(1, config.MANY_SUMS // (3 * layout.tiles) // config.MANY_ROWS) * config.MANY_ROWS
    sums = features.new_empty((3 * layout.tiles * min(step, rows),), dtype=compute)
    spans = [*_chunks(0, layout.kept, step), *_chunks(layout.kept, rows, step)]
    for first, count in spans or [(0, 0)]:
        if count:
            keep = first < layout.kept
            launch_affinities(
                plan, saved, sigma, margin, first, count,
                saved.active[first * layout.columns :] if keep else None,
                saved.flags[first // tile.b_r * layout.tiles :] if keep else None, sums,
            )  # fmt: skip
        by_row.losses_kernel[(_blocks(count, _ROW_PROGRAM),)](
            sums, saved.head, saved.ratio, saved.norm, saved.own,
            class_weights if class_weights is not None else saved.norm, loss, partial,
            saved.weight, saved.factor, saved.c_own, saved.active_sum, first, count,
            layout.tiles, class_weights.stride(0) if class_weights is not None else 0,
            double(sigma), double(margin), double(gamma), double(diversity_weight),
            M=centres, KIND=formulas.gamma_kind(gamma), DETACH=detach_focal,
            WEIGHTS=class_weights is not None, DIVERSITY=diversity, ROWS=reduction == NONE,
            BR=_ROW_PROGRAM, CT=TRITON_DTYPE[compute], num_warps=4,
        )  # fmt: skip
    by_row.reduce_kernel[(1,)](partial, loss, saved.head, row_blocks, REDUCTION=reduction)
    return loss, buffer if save else buffer.new_empty((0,))


def measure(plan: Plan, saved: Saved, target: Tensor, ignore_index: int, sigma: float) -> None:
    """Mean and norms of the prototypes; norms, own centres and own distances of the rows."""
    features, prototypes, tile = plan.features, plan.prototypes, plan.tile
    classes, _, dim = prototypes.shape
    if plan.centred:
        saved.mean.copy_(prototypes.mean((0, 1), dtype=torch.float64))
    b_d = min(256 // plan.compute.itemsize, config.power_of_two(dim))
    by_row.prototype_norms_kernel[(_blocks(plan.layout.columns, 16),)](
        prototypes, saved.mean, saved.w_norm, *prototypes.stride(),
        **plan.sizes(MP=tile.m_p, BK=16, BD=b_d), num_warps=4,
    )  # fmt: skip
    if features.shape[0]:
        by_row.row_norms_kernel[(_blocks(features.shape[0], 16),)](
            features, prototypes, target, saved.mean, saved.w_norm.isnan().any(),
            saved.ratio, saved.norm, saved.own, features.shape[0], *plan.strides,
            target.stride(0), ignore_index, double(sigma),
            **plan.sizes(BR=16, BD=b_d), num_warps=4, debug=True, sanitize_overflow=False,
        )  # fmt: skip


def launch_affinities(
    plan: Plan,
    saved: Saved,
    sigma: float,
    margin: float,
    first: int,
    rows: int,
    active: Tensor | None,
    flags: Tensor | None,
    sums: Tensor,
) -> None:
    """Tiles of rows [first, first + rows): sums and, if asked for, affinities and flags."""
    tile, tiles, compute = plan.tile, plan.layout.tiles, plan.compute
    affinities.affinities_kernel[(_blocks(rows, tile.b_r) * tiles,)](
        plan.features, plan.prototypes, saved.mean, saved.ratio, saved.norm, saved.w_norm,
        saved.own, saved.norm if active is None else active, saved.norm if flags is None else flags,
        sums, first, rows, plan.layout.dim, *plan.strides,
        double(sigma), double(margin),
        **plan.sizes(
            MP=tile.m_p, TILES=tiles, HALF=plan.half, PRECISION=plan.precision,
            KAPPA=KAPPA[compute], TOLERATED=TOLERATED[compute], VANISHED=VANISHED[compute],
            STORE=active is not None,
            BR=tile.b_r, BC=tile.b_c, BD=tile.b_d, BX=min(16, tile.b_d), GROUP=8,
        ),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def backward(
    grad_loss: Tensor,
    saved_buffer: Tensor,
    features: Tensor,
    prototypes: Tensor,
    sigma: float,
    margin: float,
    diversity_weight: float,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    """Both gradients in the dtypes of their inputs; arguments as in `few.backward`."""
    plan = Plan.of(features, prototypes, saved_buffer.dtype)
    rows, dim = features.shape
    classes, centres, _ = prototypes.shape
    grad_features = features.new_empty((rows, dim) if need_features else (0,))
    grad_prototypes = prototypes.new_empty(prototypes.shape if need_prototypes else (0,))
    if not (need_features and rows > 0 or need_prototypes):
        return grad_features, grad_prototypes
    layout, tile = plan.layout, plan.tile
    saved = Saved(saved_buffer, layout)
    pull, pull_own = saved.norm.new_empty((2, layout.padded_rows)).unbind(0)
    row_blocks = _blocks(rows, 1024)
    partial = saved.ratio.new_empty((row_blocks,))
    by_row.upstream_kernel[(row_blocks,)](
        grad_loss, saved.head, saved.own, saved.weight, saved.factor, saved.c_own,
        pull, pull_own, partial, rows, grad_loss.stride(0) if grad_loss.dim() else 0,
        BR=1024, CT=TRITON_DTYPE[plan.compute],
    )  # fmt: skip

    work = _Products(plan, saved, pull, pull_own, grad_features, need_features, need_prototypes)
    step = config.many_chunk(rows, layout.columns)
    for first, count in _chunks(0, layout.kept, step):
        flags = saved.flags[first // tile.b_r * layout.tiles :]
        work.add(first, count, saved.active[first * layout.columns :], flags, saved.active_sum)
    if layout.kept < rows:
        step = min(step, rows - layout.kept)
        active = saved.norm.new_empty((step * layout.columns,))
        flags = saved.norm.new_empty((_blocks(step, tile.b_r) * layout.tiles,))
        # A pair that rounding alone makes near or not is in the sum, or has a minus, of one launch.
        sums = saved.norm.new_empty((3 * layout.tiles * step,))
        active_sum = torch.empty_like(saved.active_sum)
        for first, count in _chunks(layout.kept, rows, step):
            launch_affinities(plan, saved, sigma, margin, first, count, active, flags, sums)
            far = sums[: 3 * layout.tiles * count].view(layout.tiles, 3, count)[:, 2]
            active_sum[first : first + count] = far.sum(0, dtype=torch.float64)
            work.add(first, count, active, flags, active_sum)
        del active
    if need_prototypes:
        diversity = diversity_weight != 0.0 and classes * centres > 2
        work.finish(grad_prototypes, partial.sum() * diversity_weight if diversity else None)
    return grad_features, grad_prototypes


class _Products:
    """The products of the backward, chunk of rows by chunk of rows."""

    def __init__(
        self,
        plan: Plan,
        saved: Saved,
        pull: Tensor,
        pull_own: Tensor,
        grad_features: Tensor,
        need_features: bool,
        need_prototypes: bool,
    ):
        """Allocates the parts of the prototypes' gradient."""
        self.plan, self.saved, self.pull, self.pull_own = plan, saved, pull, pull_own
        self.grad_features = grad_features
        self.need_features, self.need_prototypes = need_features, need_prototypes
        layout = plan.layout
        self.columns = _blocks(layout.dim, plan.tile.b_o)
        elements = layout.columns * layout.dim
        self.splits = config.many_splits(layout.tiles * self.columns, elements)
        self.parts = saved.norm.new_empty((self.splits * elements,)) if need_prototypes else None
        self.chunks = 0

    def add(self, first: int, rows: int, active: Tensor, flags: Tensor, active_sum: Tensor) -> None:
        """Rows [first, first + rows) with their active affinities and flags; sums of all rows."""
        plan, saved, tile, tiles = self.plan, self.saved, self.plan.tile, self.plan.layout.tiles
        row_tiles = _blocks(rows, tile.b_r)
        mean = saved.mean
        common = (first, rows, *plan.strides)
        if self.need_features:
            lists = self._lists(flags, row_tiles, tiles, tiles, 1)
            programs = row_tiles * self.columns
            splits = config.many_splits(programs, rows * plan.layout.dim)
            parts = saved.norm.new_empty((splits * rows * plan.layout.dim if splits > 1 else 0,))
            row_values = (saved.own, active_sum, self.pull, self.pull_own)
            pointers = (plan.features, plan.prototypes, mean, *row_values, self.grad_features)
            for near in (False, True):
                columns = _blocks(plan.layout.dim, plan.out_columns(near))
                gradients.features_kernel[(row_tiles * columns * splits,)](
                    active, *lists, *pointers, parts, splits, *common,
                    WHOLE=splits == 1, **plan.products(near),
                )  # fmt: skip
            if splits > 1:
                gradients.finish_features_kernel[(_blocks(rows, 16), self.columns)](
                    *pointers, parts, splits, *common,
                    M=plan.prototypes.shape[1], D=plan.layout.dim, MEAN=plan.centred,
                    BR=16, BD=tile.b_o, CT=TRITON_DTYPE[plan.compute],
                )  # fmt: skip
        if self.need_prototypes:
            lists = self._lists(flags, tiles, row_tiles, 1, tiles)
            for near in (False, True):
                columns = _blocks(plan.layout.dim, plan.out_columns(near))
                gradients.prototypes_kernel[(tiles * columns * self.splits,)](
                    active, *lists, plan.features, plan.prototypes, mean, saved.own, self.pull,
                    self.parts, self.splits, *common, row_tiles, ADD=near or self.chunks > 0,
                    **plan.products(near),
                )  # fmt: skip
            self.chunks += 1

    def _lists(
        self, flags: Tensor, lines: int, length: int, stride: int, step: int
    ) -> tuple[Tensor, ...]:
        """Open tiles of each line, those with near pairs [lines, length], and counts [lines, 3]."""
        lists = [flags.new_empty((lines * length,), dtype=torch.int32) for _ in range(2)]
        counts = flags.new_empty((lines * 3,), dtype=torch.int32)
        gradients.list_kernel[(lines,)](
            flags, *lists, counts, length, stride, step, BLOCK=128
        )  # fmt: skip
        return *lists, counts

    def finish(self, grad_prototypes: Tensor, total: Tensor | None) -> None:
        """Writes the prototypes' gradient; `total` is G, None without a diversity term."""
        plan, saved, layout = self.plan, self.saved, self.plan.layout
        classes, centres, dim = plan.prototypes.shape
        count = classes * centres
        # Rows by own centre, in their order; those that are ignored come first, at -1.
        owners, order = saved.own[: layout.rows].sort(stable=True)
        edges = torch.arange(count + 1, device=owners.device, dtype=owners.dtype)
        start = torch.searchsorted(owners, edges)
        slope = many_diversity.gradient(plan.prototypes) if total is not None else saved.ratio
        gradients.finish_prototypes_kernel[(count, self.columns)](
            self.parts, order, start, plan.features, plan.prototypes, self.pull_own,
            slope, saved.head if total is None else total, grad_prototypes,
            self.splits if self.chunks else 0, *plan.strides,
            M=centres, D=dim, MP=plan.tile.m_p, PADDED=layout.columns,
            DIVERSITY=total is not None, BR=32, BD=plan.tile.b_o,
            CT=TRITON_DTYPE[plan.compute],
        )  # fmt: skip
