"""The autograd function in Python, the one in C++ and its entry do the same.

The gates meet the one that serves: in C++ where it was built for the torch at hand.
"""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

import cfal_kernels as cfal
from cfal_kernels import _build, ops
from support import forced_regime, problem
from support_kernels import F32, needs_kernels

pytestmark = needs_kernels
# What each does without.
FUNCTIONS = {"python": {"loss": None, "entry": None}, "c++": {"entry": None}, "entry": {}}


@pytest.fixture(params=FUNCTIONS)
def function(request, monkeypatch):
    """Sends every call through one of them; its name."""
    if request.param != "python" and ops.autograd_unavailable:
        pytest.skip(ops.autograd_unavailable)
    chosen = ops.compiled._replace(**FUNCTIONS[request.param])
    monkeypatch.setattr(ops, "compiled", chosen)
    return request.param


def loss_of(f, w, y, **keywords):
    return cfal.cfal_loss(f, w, y, backend="cpu", **{"sigma": 10.0, **keywords})


def name_of(loss: torch.Tensor) -> str:
    """Which of the two functions recorded the loss."""
    return "c++" if "CppNode" in loss.grad_fn.name() else "python"


def test_the_build_here_has_it():
    # A build may do without; the tests below would then skip, and nobody would notice.
    built_for = _build.record().get("torch_headers")
    if built_for != torch.__version__:
        pytest.skip(f"built for torch {built_for}, this is {torch.__version__}")
    assert ops.autograd_unavailable == ""
    assert cfal.build_info()["autograd_function"] == "C++"
    assert name_of(loss_of(*problem())) == "c++"


@pytest.mark.parametrize(
    ("key", "value"),
    [("torch_headers", "2.10.0+other"), ("extension_suffix", ".cpython-39.so")],
)
def test_another_torch_or_python_takes_the_one_in_python(key, value, monkeypatch):
    if _build.find(_build.TORCH_AUTOGRAD) is None:
        pytest.skip(_build.why_missing(_build.TORCH_AUTOGRAD))
    record = {**_build.record(), key: value}
    monkeypatch.setattr(_build, "record", lambda: record)
    monkeypatch.setattr(torch.ops, "load_library", lambda _: pytest.fail("it was loaded"))
    reason = ops._load_autograd()
    assert f"built for torch {record['torch_headers']}" in reason
    assert value in reason and torch.__version__ in reason


@pytest.mark.parametrize("regime", [0, 1], ids=["few", "many"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("centres", [0, 1, 3], ids=["flat", "M1", "M3"])
def test_same_bits(regime, reduction, centres, monkeypatch):
    if ops.autograd_unavailable:
        pytest.skip(ops.autograd_unavailable)
    f, w, y = problem(9, 5, max(centres, 1), 6, dtype=F32)
    if centres == 0:
        w = w.detach()[:, 0].clone().requires_grad_()
    y[2] = -100
    keywords = {"reduction": reduction, "class_weights": torch.linspace(0.5, 1.5, 5)}
    upstream = torch.linspace(-1.0, 2.0, 9) if reduction == "none" else torch.tensor(0.7)
    results = []
    compiled = ops.compiled
    for without in FUNCTIONS.values():
        monkeypatch.setattr(ops, "compiled", compiled._replace(**without))
        with forced_regime(regime):
            value = loss_of(f, w, y, detach_focal=centres == 1, gamma=1.5, **keywords)
        results.append((value.detach(), *torch.autograd.grad(value, (f, w), upstream)))
        for needed, others in ((f, (f, w.detach())), (w, (f.detach(), w))):
            with forced_regime(regime):
                value = loss_of(*others, y, gamma=1.5, **keywords)
            results[-1] += torch.autograd.grad(value, needed, upstream)
    for python, *others in zip(*results, strict=True):
        for cpp in others:
            assert python.shape == cpp.shape and torch.equal(python, cpp)


def test_each_function_serves_when_chosen(function):
    f, w, y = problem()
    loss = loss_of(f, w, y)
    assert name_of(loss) == ("python" if function == "python" else "c++")
    assert gradcheck(lambda f, w: loss_of(f, w, y), (f, w))


def test_errors(function):
    f, w, y = problem()
    (grad,) = torch.autograd.grad(loss_of(f, w, y), f, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative.*backend='reference'"):
        grad.sum().backward()
    loss = loss_of(f, w, y)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    y[1] = 77
    with pytest.raises(ValueError, match="target holds 77 at position 1"):
        loss_of(f, w, y)


def test_inputs_changed_in_between(function):
    f, w, y = problem()
    moved = f * 1.0
    loss = loss_of(moved, w, y)
    moved.detach().add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_hooks_on_saved_tensors_see_all_of_them(function):
    f, w, y = problem()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        loss = loss_of(f, w, y, class_weights=torch.ones(len(w)))
    assert len(packed) == 5
    expected = torch.autograd.grad(loss_of(f, w, y), (f, w))
    for a, b in zip(torch.autograd.grad(loss, (f, w)), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(function, reentrant):
    f, w, y = problem()
    expected = torch.autograd.grad(loss_of(2.0 * f, w, y), (f, w))
    loss = checkpoint(lambda f, w: loss_of(2.0 * f, w, y), f, w, use_reentrant=reentrant)
    loss.backward()
    assert torch.equal(f.grad, expected[0]) and torch.equal(w.grad, expected[1])


def test_compiled_autograd(function):
    f, w, y = problem(dtype=F32)
    expected = torch.autograd.grad(loss_of(f, w, y), (f, w))
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        loss_of(f, w, y).backward()
    assert torch.equal(f.grad, expected[0]) and torch.equal(w.grad, expected[1])


def test_fake_tensors(function):
    with torch._subclasses.fake_tensor.FakeTensorMode():
        f = torch.empty(7, 5, requires_grad=True)
        w = torch.empty(4, 5, requires_grad=True)
        loss = loss_of(f, w, torch.empty(7, dtype=torch.int64))
        loss.backward()
        assert loss.shape == () and f.grad.shape == f.shape and w.grad.shape == w.shape


@pytest.mark.parametrize("flat", [False, True], ids=["M1", "flat"])
def test_inference_mode_records_nothing_even_with_gradients_enabled(function, flat):
    f, w, y = problem()
    w = w.detach()[:, 0].requires_grad_() if flat else w
    with torch.inference_mode(), torch.enable_grad():
        assert not (f * 1.0).requires_grad  # torch's own operators
        loss = loss_of(f, w, y)
    assert not loss.requires_grad and torch.equal(loss, loss_of(f, w, y))


def test_inside_of_a_dispatch_mode(function):
    """There torch has autograd switched off, while grad mode may be on."""
    f, w, y = problem()

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            with torch.enable_grad():
                return loss_of(f, w, y)

    with Mode():
        loss = torch.sin(torch.ones(()))
    assert torch.equal(loss, loss_of(f, w, y))


def test_threads(function):
    """The engine may call it from a thread of its own: several graphs at once."""
    from concurrent.futures import ThreadPoolExecutor

    def gradients(seed: int):
        f, w, y = problem(40, 5, 1, 6, seed=seed)
        return torch.autograd.grad(loss_of(f, w, y), (f, w))

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(gradients, range(12)))
    for seed, pair in enumerate(got):
        assert all(torch.equal(a, b) for a, b in zip(pair, gradients(seed), strict=True))
