"""The tests' own tools: copies for other devices that lie in memory as the original, and groups."""

from __future__ import annotations

import pytest
import torch

from support import Moved

WHOLE = torch.arange(24.0).view(4, 6)


@pytest.mark.parametrize(
    "x",
    [WHOLE, WHOLE[1:, ::2], WHOLE.t(), WHOLE[:, :1].expand(4, 3), WHOLE[:0], WHOLE.half()[0, 3]],
    ids=["whole", "sliced", "transposed", "expanded", "empty", "scalar"],
)
def test_values_and_layout(x):
    copy = Moved.apply(x, "cpu")
    assert torch.equal(copy, x) and copy.dtype == x.dtype
    assert copy.stride() == x.stride() and copy.storage_offset() == x.storage_offset()
    assert copy.data_ptr() != x.data_ptr() or not x.numel()


def test_gradients_travel_back_in_their_own_layout():
    x = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    seen = []
    there = Moved.apply(x, "cpu")
    there.register_hook(lambda grad: seen.append(grad.stride()))
    (grad,) = torch.autograd.grad(there, x, torch.ones(1, 2, dtype=torch.float64).expand(3, 2))
    assert grad.stride() == seen[0] == (0, 1)
    assert torch.autograd.gradgradcheck(lambda x: Moved.apply(x, "cpu").square(), x)


@pytest.mark.xdist_group("grouped")
def test_tests_of_a_group_stay_in_one_process(request):
    """A pytest that xdist cannot tell its groups makes every costly fixture in every process."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("one process, or another distribution than --dist loadgroup")
    assert request.node.nodeid.endswith("@grouped")
