"""The entry in C++ serves ordinary calls alone: what is unusual or wrong is left to Python."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

import cfal_kernels as cfal
from cfal_kernels import _regime, ops
from support import needs_autograd, problem
from support_kernels import F32, needs_kernels, same_package

pytestmark = [needs_kernels, needs_autograd]

NAMES = (
    "features", "prototypes", "target", "class_weights", "sigma", "margin", "gamma",
    "diversity_weight", "detach_focal", "reduction", "ignore_index", "few_limit",
)  # fmt: skip


def arguments(**changed: Any) -> dict[str, Any]:
    f, w, y = problem(7, 4, 1, 5, dtype=F32)
    values = (f, w, y, torch.ones(4), 10.0, 0.1, 2.0, 1.0, False, "mean", -100, 64)
    return {**dict(zip(NAMES, values, strict=True)), **changed}


def entry(call: dict[str, Any]) -> torch.Tensor | None:
    return ops.compiled.entry(*call.values())


def public(call: dict[str, Any]) -> torch.Tensor:
    f, w, y, *_ = call.values()
    keywords = {name: call[name] for name in NAMES[3:-1]}
    return cfal.cfal_loss(f, w, y, backend="cpu", **keywords)


ORDINARY = {
    "all given": {},
    "no class weights": {"class_weights": None},
    "weights in double": {"class_weights": torch.ones(4, dtype=torch.float64)},
    "target int32": {"target": torch.zeros(7, dtype=torch.int32)},
    "flat prototypes": {"prototypes": torch.randn(4, 5, requires_grad=True)},
    "several centres": {"prototypes": torch.randn(4, 3, 5, requires_grad=True)},
    "a parameter": {"prototypes": torch.nn.Parameter(torch.randn(4, 1, 5))},
    "only prototypes learn": {"features": torch.randn(7, 5)},
    "half features": {"features": torch.randn(7, 5).half()},
    "bfloat16 features": {"features": torch.randn(7, 5).bfloat16().requires_grad_()},
    "strided features": {"features": torch.randn(5, 7).t().requires_grad_()},
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum"},
    "detached": {"detach_focal": True},
    "no rows": {"features": torch.randn(0, 5), "target": torch.zeros(0, dtype=torch.int64)},
    "many prototypes": {"few_limit": 3},
    "an odd margin": {"margin": -1.0, "diversity_weight": -0.5, "gamma": 0.0},
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_calls_are_served(name, monkeypatch):
    call = arguments(**ORDINARY[name])
    value = entry(call)
    assert value is not None and value.requires_grad
    monkeypatch.setattr(ops, "compiled", ops.compiled._replace(entry=None))
    monkeypatch.setattr(_regime, "few_limit", call["few_limit"])
    # Equal bits, and the NaN of a mean over no rows.
    torch.testing.assert_close(value, public(call), rtol=0.0, atol=0.0, equal_nan=True)


UNUSUAL = {
    "nothing learns": {"features": torch.randn(7, 5), "prototypes": torch.randn(4, 1, 5)},
    "an int for a float": {"gamma": 2},
    "a tensor for a float": {"sigma": torch.tensor(10.0)},
    "weights in half": {"class_weights": torch.ones(4).half()},
    "a subclass": {"features": torch.randn(7, 5).as_subclass(type("S", (torch.Tensor,), {}))},
    "meta tensors": {"features": torch.empty(7, 5, device="meta", requires_grad=True)},
    "a large ignore_index": {"ignore_index": 2**70},
    "a str subclass": {"reduction": type("R", (str,), {})("mean")},
}
WRONG = {
    "sigma": {"sigma": 0.0},
    "sigma NaN": {"sigma": float("nan")},
    "sigma inf": {"sigma": float("inf")},
    "margin": {"margin": float("inf")},
    "gamma": {"gamma": -1.0},
    "diversity_weight": {"diversity_weight": float("-inf")},
    "detach_focal": {"detach_focal": 1},
    "reduction": {"reduction": "MEAN"},
    "reduction, no string": {"reduction": None},
    "ignore_index": {"ignore_index": 1.0},
    "ignore_index, a bool": {"ignore_index": True},
    "features, no tensor": {"features": [[1.0]]},
    "features, integers": {"features": torch.ones(7, 5, dtype=torch.int64)},
    "features, complex": {"features": torch.ones(7, 5, dtype=torch.complex64)},
    "features, 1-D": {"features": torch.randn(5, requires_grad=True)},
    "features, rows": {"features": torch.randn(8, 5, requires_grad=True)},
    "features, columns": {"features": torch.randn(7, 6, requires_grad=True)},
    "features, no columns": {"features": torch.randn(7, 0), "prototypes": torch.randn(4, 1, 0)},
    "prototypes, none": {"prototypes": torch.randn(0, 1, 5, requires_grad=True)},
    "prototypes, no centres": {"prototypes": torch.randn(4, 0, 5, requires_grad=True)},
    "prototypes, 4-D": {"prototypes": torch.randn(4, 1, 1, 5, requires_grad=True)},
    "prototypes, sparse": {"prototypes": torch.randn(4, 5).to_sparse().requires_grad_()},
    "target, a float": {"target": torch.zeros(7)},
    "target, bytes": {"target": torch.zeros(7, dtype=torch.uint8)},
    "target, 2-D": {"target": torch.zeros(7, 1, dtype=torch.int64)},
    "target, beyond": {"target": torch.full((7,), 4)},
    "target, below": {"target": torch.full((7,), -1)},
    "class_weights, length": {"class_weights": torch.ones(5)},
    "class_weights, 2-D": {"class_weights": torch.ones(4, 1)},
    "class_weights, learnt": {"class_weights": torch.ones(4, requires_grad=True)},
    "class_weights, integers": {"class_weights": torch.ones(4, dtype=torch.int64)},
    "class_weights, a list": {"class_weights": [1.0] * 4},
}


@pytest.mark.parametrize("name", [*UNUSUAL, *WRONG])
def test_every_other_call_is_left_to_python(name):
    assert entry(arguments(**{**UNUSUAL, **WRONG}[name])) is None


@pytest.mark.parametrize("name", WRONG)
def test_python_then_says_what_is_wrong(name):
    with pytest.raises((TypeError, ValueError), match=name.split(",")[0].split(" ")[0]):
        public(arguments(**WRONG[name]))


def test_moments_that_belong_to_others():
    call = arguments()
    assert entry(call) is not None
    with torch.no_grad():
        assert entry(call) is None
    with torch.inference_mode():
        assert entry(call) is None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert entry(call) is None
    with torch.overrides.TorchFunctionMode():
        assert entry(call) is None
    with torch.utils._python_dispatch.TorchDispatchMode():
        assert entry(call) is None
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.randn(7, 5, requires_grad=True), torch.randn(7, 5))
        assert entry(arguments(features=dual)) is None
    seen = []
    torch.func.vmap(lambda _: seen.append(entry(call)) or torch.zeros(()))(torch.zeros(2))
    assert seen == [None]


def test_a_call_that_fails_costs_no_guess():
    """The step after it makes loss and gradients in one pass again."""
    call = arguments()
    public(call).backward()
    for _ in range(3):
        with pytest.raises(ValueError, match="target holds 9"):
            public({**call, "target": torch.full((7,), 9)})
    with torch.profiler.profile() as profile:
        public(call).backward()
    names = {event.key for event in profile.key_averages()}
    assert "cfal::value_and_grad" in names and "cfal::backward" not in names


def test_an_interrupt_is_not_swallowed():
    """Raised by code in Python that the dispatcher calls, here for autocast."""
    code = """
import torch
import cfal_kernels as cfal
from cfal_kernels import ops
calls = []
def interrupted(*arguments):
    calls.append(1)
    raise KeyboardInterrupt
library = torch.library.Library("cfal", "IMPL")
library.impl("loss", interrupted, "AutocastCPU")
assert ops.compiled.entry is not None
f, w = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3)
try:
    with torch.autocast("cpu"):
        cfal.cfal_loss(f, w, torch.zeros(5, dtype=torch.int64), sigma=1.0)
except KeyboardInterrupt:
    print("interrupted", len(calls))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=same_package()
    )
    assert done.stdout == "interrupted 1\n", done.stderr


def test_it_serves_functional_and_module(monkeypatch):
    calls = []

    def counted(*given):
        calls.append(1)
        return ops_entry(*given)

    ops_entry = ops.compiled.entry
    monkeypatch.setattr(ops, "compiled", ops.compiled._replace(entry=counted))
    f, w, y = problem(7, 4, 1, 5, dtype=F32)
    for backend, expected in (("auto", 1), ("cpu", 1), ("reference", 0)):
        calls.clear()
        cfal.cfal_loss(f, w, y, sigma=10.0, backend=backend)
        cfal.CFALLoss(4, 5, sigma=10.0, backend=backend)(f, y)
        assert len(calls) == 2 * expected, backend


def test_it_takes_all_arguments_or_none():
    with pytest.raises(TypeError, match="takes 12 arguments, got 2"):
        ops.compiled.entry(1, 2)
