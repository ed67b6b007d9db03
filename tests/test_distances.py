"""Squared distances for inference: by the compiled operators on the CPU, in plain PyTorch else."""

from __future__ import annotations

import pytest
import torch

import cfal_kernels as cfal
from cfal_kernels import ops
from cfal_kernels.pairwise import PairwiseSquared
from support import needs_kernels, relative_error

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

#: Rows, classes, centres, features; around the tiles of rows, prototypes and columns.
SHAPES = [
    (0, 3, 1, 5), (1, 1, 1, 1), (33, 9, 1, 40), (65, 5, 3, 17), (4, 13, 1, 513), (300, 70, 1, 3),
    (10, 700, 1, 130), (20, 150, 2, 600),
]  # fmt: skip
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_way = pytest.mark.parametrize(
    "compiled", [pytest.param(True, marks=needs_kernels), False], ids=["compiled", "pytorch"]
)


def make(rows, classes, centres, dim, dtype=F64, distance=1.0):
    """Features near prototypes [C, M, D], and an upstream gradient; exact in float32."""
    draw = torch.Generator().manual_seed(rows + classes)
    w = torch.randn(classes, centres, dim, generator=draw, dtype=F64)
    f = w[torch.arange(rows) % classes, 0] + distance * torch.randn(
        rows, dim, generator=draw, dtype=F64
    )
    g = torch.randn(rows, classes, generator=draw, dtype=F64)
    return f.float().to(dtype), w.float().to(dtype), g


def definition(f, w, g):
    """Distances to the nearest centres and both gradients, in float64 and all at once."""
    f, w = (x.detach().double().requires_grad_() for x in (f, w))
    q = (f[:, None, None, :] - w).square().sum(3).amin(2)
    return (q.detach(), *torch.autograd.grad(q, (f, w), g))


def run(f, w, g):
    f, w = f.detach().requires_grad_(), w.detach().requires_grad_()
    q = cfal.squared_distances(f, w)
    return (q.detach(), *torch.autograd.grad(q, (f, w), g.to(q.dtype)))


@pytest.fixture
def way(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(ops, "unavailable", "not here")


@each_way
@every_shape
@pytest.mark.parametrize("distance", [1e-5, 1.0])
@pytest.mark.parametrize("dtype", [F64, F32], ids=["f64", "f32"])
def test_values_and_gradients(way, shape, distance, dtype):
    f, w, g = make(*shape, dtype, distance)
    for got, exact in zip(run(f, w, g), definition(f, w, g), strict=True):
        assert got.dtype == dtype
        assert relative_error(got, exact) < {F64: 1e-14, F32: 5e-6}[dtype]


@each_way
@pytest.mark.parametrize("dtypes", [(F16, F16), (BF16, F32), (F32, F64), (F64, BF16)], ids=str)
def test_dtypes(way, dtypes):
    f, w, g = make(33, 9, 2, 40)
    f, w = f.to(dtypes[0]), w.to(dtypes[1])
    wide = F64 if F64 in dtypes else F32
    q, grad_f, grad_w = run(f, w, g)
    assert (q.dtype, grad_f.dtype, grad_w.dtype) == (wide, *dtypes)
    for got, exact in zip((q, grad_f, grad_w), definition(f, w, g), strict=True):
        # Rounded once to the dtype of the input, from an accurate float32 or float64.
        rounding = 0.0 if got.dtype == wide else torch.finfo(got.dtype).eps
        assert relative_error(got, exact) < {F64: 1e-14, F32: 1e-6}[wide] + rounding


@each_way
def test_layouts_change_nothing(way, compiled):
    f, w, g = make(21, 9, 2, 40, F32)
    expected = run(f, w, g)
    spread = torch.full((21, 81), torch.nan)
    spread[:, 1::2] = f
    wt = w.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for a, b in zip(run(spread[:, 1::2], wt, g), expected, strict=True):
        # PyTorch sums a strided row in another order.
        assert torch.equal(a, b) if compiled else relative_error(a, b) < 1e-6
    q = cfal.squared_distances(f.requires_grad_(), w)
    (grad,) = torch.autograd.grad(q, f, torch.ones(1, 1).expand(21, 9))
    (same,) = torch.autograd.grad(cfal.squared_distances(f, w), f, torch.ones(21, 9))
    assert torch.equal(grad, same)


@needs_kernels
def test_threads_change_no_bit():
    f, w, g = make(300, 70, 1, 65, F32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(f, w, g))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@each_way
def test_derivatives(way):
    f, w, _ = make(4, 3, 2, 5)
    f, w = f.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradcheck(cfal.squared_distances, (f, w))
    assert torch.autograd.gradgradcheck(cfal.squared_distances, (f, w))


@each_way
@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=str)
def test_one_gradient_alone(way, needs):
    f, w, g = make(9, 4, 1, 6)
    both = run(f, w, g)[1:]
    f, w = f.requires_grad_(needs[0]), w.requires_grad_(needs[1])
    cfal.squared_distances(f, w).backward(g)
    for x, wanted, grad in zip((f, w), needs, both, strict=True):
        assert torch.equal(x.grad, grad) if wanted else x.grad is None


@each_way
def test_what_is_not_finite(way):
    f, w, _ = make(6, 3, 1, 20, F32)
    f[0, 3], f[1, 4], f[2] = torch.nan, torch.inf, 3e38
    q = cfal.squared_distances(f, w)
    assert q[0].isnan().all() and not q[1].isfinite().any()
    assert (q[2] == torch.inf).all() and q[3:].isfinite().all()


@each_way
def test_transforms(way):
    f, w, _ = make(5, 3, 1, 4)
    fs, ws = torch.stack([f, 3 * f], dim=1), torch.stack([w, 2 * w])
    for dims in ((None, 0), (1, None), (1, 0)):
        of = [f if dims[0] is None else fs.unbind(1)[n] for n in range(2)]
        to = [w if dims[1] is None else ws[n] for n in range(2)]
        mapped = torch.func.vmap(cfal.squared_distances, dims)(
            f if dims[0] is None else fs, w if dims[1] is None else ws
        )
        for got, a, b in zip(mapped, of, to, strict=True):
            torch.testing.assert_close(got, cfal.squared_distances(a, b), rtol=1e-14, atol=0)
    slope = torch.func.grad(lambda f: cfal.squared_distances(f, w).sum())(f)
    torch.testing.assert_close(slope, 2 * (f[:, None] - w[:, 0]).sum(1), rtol=1e-13, atol=0)


@needs_kernels
def test_many_prototypes_take_no_matrix_of_pairs():
    f, w = torch.full((1, 1), 3.0), torch.zeros(120_000, 1, requires_grad=True)  # K^2: 57 GB
    cfal.squared_distances(f, w).sum().backward()
    assert (w.grad == -6.0).all()


@needs_kernels
def test_sizes_that_overflow():
    f, w = torch.zeros(1, 1).expand(1 << 40, 1 << 22), torch.zeros(1, 1).expand(3, 1 << 22)
    with pytest.raises(ValueError, match="are too large"):
        cfal.squared_distances(f, w)


@each_way
def test_training_a_compiled_head(way):
    torch._dynamo.reset()
    head = cfal.PrototypeHead(6, 4, sigma=12.0)
    y = torch.arange(9) % 4

    def step(f):
        return torch.nn.functional.cross_entropy(head(f), y)

    f = torch.randn(9, 6, requires_grad=True)
    expected = torch.autograd.grad(step(f), (f, head.prototypes))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, grad in zip(
        torch.autograd.grad(compiled(f), (f, head.prototypes)), expected, strict=True
    ):
        torch.testing.assert_close(got, grad)


@needs_kernels
def test_opcheck():
    f, w, g = make(6, 9, 1, 5, F32)
    arguments = (f.requires_grad_(), w[:, 0].requires_grad_())
    torch.library.opcheck(
        torch.ops.cfal.squared_distances.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )
    plain = (g.float(), f.detach(), w[:, 0].detach(), True, False)
    torch.library.opcheck(torch.ops.cfal.squared_distances_backward.default, plain)


@needs_kernels
def test_the_operators_refuse_what_does_not_fit():
    f, w, g = make(6, 9, 1, 5, F32)
    with pytest.raises(RuntimeError, match="features have 5 columns, prototypes 4"):
        torch.ops.cfal.squared_distances(f, w[:, 0, :4])
    with pytest.raises(RuntimeError, match="grad must have the shape and dtype"):
        torch.ops.cfal.squared_distances_backward(g, f, w[:, 0], True, True)


@each_way
def test_compiled_once_for_all_batch_sizes(way):
    torch._dynamo.reset()
    head = cfal.PrototypeHead(1024, 300)
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="eager")
    for rows in range(2, 14):
        f = torch.randn(rows, 1024)
        torch.testing.assert_close(compiled(f), head(f))


@each_way
def test_exported_with_a_dynamic_batch(way):
    head = cfal.PrototypeHead(40, 70)
    batch = torch.export.Dim("batch")
    program = torch.export.export(head, (torch.randn(20, 40),), dynamic_shapes=({0: batch},))
    f = torch.randn(33, 40)
    torch.testing.assert_close(program.module()(f), head(f))


def test_the_definition_is_plain_pytorch(monkeypatch):
    # What the kernels are held to must not come from them.
    f, w, _ = make(6, 9, 1, 5)

    def refuse(*arguments):
        raise AssertionError("the reference asked a compiled operator")

    monkeypatch.setattr(torch.ops.cfal, "squared_distances", refuse, raising=False)
    assert PairwiseSquared.apply(f, w[:, 0]).shape == (6, 9)
    cfal.reference.cfal_loss(f, w, torch.arange(6))
