"""The one-time warnings: each fires where it should, once, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import cfal_kernels as cfal
from cfal_kernels import diagnostics, ops
from support import problem


@pytest.fixture
def caught():
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        yield record


def messages(record):
    return [str(w.message) for w in record if issubclass(w.category, cfal.CFALWarning)]


def train(loss, parameters, steps, *, accumulate=1, model=None, zero=True, step=None):
    model = model or nn.Linear(6, 5)
    optimizer = torch.optim.SGD([*model.parameters(), *parameters], lr=0.01)
    for i in range(steps):
        if zero and i % accumulate == 0:
            optimizer.zero_grad()
        loss(model(torch.randn(8, 6)), torch.randint(3, (8,))).backward()
        if (i + 1) % accumulate == 0:
            optimizer.step()


class TestNeverUpdated:
    def test_prototypes_missing_from_the_optimizer(self, caught):
        loss = cfal.CFALLoss(3, 5)
        train(loss, [], 10)
        [message] = messages(caught)
        assert "prototypes" in message and "optimizer" in message and "from_head" in message

    def test_within_three_steps(self, caught):
        train(cfal.CFALLoss(3, 5), [], 3)
        assert len(messages(caught)) == 1

    def test_without_a_model(self, caught):
        # Nothing upstream tells accumulation from a missing optimizer: a late and softer verdict.
        loss = cfal.CFALLoss(3, 5)
        for i in range(diagnostics.WATCHED_FORWARDS + 3):
            loss(torch.randn(8, 5), torch.randint(3, (8,))).backward()
            assert len(messages(caught)) == (i + 1 >= diagnostics.WATCHED_FORWARDS)
        [message] = messages(caught)
        assert "unless gradients are accumulated" in message and "from_head" in message

    def test_not_for_accumulation_over_precomputed_features(self, caught):
        loss = cfal.CFALLoss(3, 5)
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.01)
        for i in range(3 * diagnostics.WATCHED_FORWARDS):
            loss(torch.randn(8, 5), torch.randint(3, (8,))).backward()
            if (i + 1) % 8 == 0:
                optimizer.step()
                optimizer.zero_grad()
        assert messages(caught) == []

    @pytest.mark.parametrize("accumulate", [1, 4])
    def test_not_when_trained(self, accumulate, caught):
        loss = cfal.CFALLoss(3, 5)
        train(loss, loss.parameters(), 12, accumulate=accumulate)
        assert messages(caught) == []

    def test_after_accumulation_when_missing(self, caught):
        train(cfal.CFALLoss(3, 5), [], 12, accumulate=4)
        assert len(messages(caught)) == 1

    def test_not_when_frozen(self, caught):
        loss = cfal.CFALLoss(3, 5)
        loss.requires_grad_(False)
        train(loss, [], 5)
        assert messages(caught) == []

    def test_not_in_evaluation(self, caught):
        loss = cfal.CFALLoss(3, 5).eval()
        f = torch.randn(8, 5, requires_grad=True)
        for _ in range(5):
            loss(f, torch.randint(3, (8,)))
        assert messages(caught) == []

    def test_not_when_updated_through_data(self, caught):
        # Some optimizers write to .data, which leaves the version counter alone.
        loss = cfal.CFALLoss(3, 5)
        model = nn.Linear(6, 5)
        for _ in range(6):
            loss(model(torch.randn(8, 6)), torch.randint(3, (8,))).backward()
            for p in (*model.parameters(), *loss.parameters()):
                p.data -= 0.01 * p.grad
        assert messages(caught) == []

    def test_head_missing_from_the_optimizer(self, caught):
        head = cfal.PrototypeHead(5, 3)
        train(cfal.CFALLoss.from_head(head), [], 5)
        assert len(messages(caught)) == 1

    def test_head_in_the_model(self, caught):
        head = cfal.PrototypeHead(5, 3)
        train(cfal.CFALLoss.from_head(head), head.parameters(), 5)
        assert messages(caught) == []

    def test_the_module_stops_looking(self):
        loss = cfal.CFALLoss(3, 5)
        train(loss, loss.parameters(), 2)
        assert loss._watch is None


class TestUnreachable:
    def test_sigma_too_small_for_the_embedding(self, caught):
        loss = cfal.CFALLoss(2, 4096)  # item 15 of the paper's notes: never trains
        f, y = 3.0 * torch.randn(8, 4096), torch.randint(2, (8,))
        loss(f, y)
        [message] = messages(caught)
        assert "below 1e-6" in message and "sigma = 130" in message
        suggested = float(message.split("Use sigma near ")[1].split(",")[0])
        affinity = torch.exp(-cfal.squared_distances(f, loss.prototypes) / suggested)
        assert 0.1 < affinity.median() < 0.9  # the sigma it names works
        loss(f, y)
        assert len(messages(caught)) == 1

    def test_not_where_one_affinity_is_alive(self, caught):
        loss = cfal.CFALLoss(2, 4096)
        f = 3.0 * torch.randn(8, 4096)
        f[5] = loss.prototypes.detach()[1, 0]
        loss(f, torch.randint(2, (8,)))
        assert messages(caught) == []

    def test_not_for_nan(self, caught):
        loss = cfal.CFALLoss(2, 8)
        loss(torch.full((4, 8), float("nan")), torch.zeros(4).long())
        assert messages(caught) == []


class TestWeights:
    def test_beta_without_effect(self, caught):
        # IDC's counts: paper-notes item 5
        cfal.CFALLoss(2, 64, class_counts=[198738, 78786], beta=0.999)
        [message] = messages(caught)
        assert "beta = 0.999" in message and "1 %" in message

    def test_not_where_beta_acts(self, caught):
        cfal.CFALLoss(2, 64, class_counts=[198738, 78786], beta=0.99999)
        cfal.CFALLoss(2, 64, class_counts=[5638, 2086])
        assert messages(caught) == []

    def test_not_for_even_classes_or_given_weights(self, caught):
        cfal.CFALLoss(2, 64, class_counts=[1000, 1000])
        cfal.CFALLoss(2, 64, class_weights=[1.0, 1.0])
        cfal.CFALLoss(2, 64)
        assert messages(caught) == []


class TestDistributed:
    @pytest.fixture(autouse=True)
    def two_ranks(self, monkeypatch):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda *a: 2)

    def test_bare_loss(self, caught):
        loss = cfal.CFALLoss(3, 5)
        train(loss, loss.parameters(), 3)
        [message] = messages(caught)
        assert "2 processes" in message and "DistributedDataParallel" in message

    def test_inside_ddp(self, caught, monkeypatch):
        ddp = torch.nn.parallel.DistributedDataParallel
        monkeypatch.setattr(ddp, "_active_ddp_module", object())
        loss = cfal.CFALLoss(3, 5)
        train(loss, loss.parameters(), 3)
        assert messages(caught) == []

    def test_head_belongs_to_the_model(self, caught):
        head = cfal.PrototypeHead(5, 3)
        train(cfal.CFALLoss.from_head(head), head.parameters(), 3)
        assert messages(caught) == []


class TestFallback:
    @pytest.fixture(autouse=True)
    def not_built(self, monkeypatch):
        monkeypatch.setattr(ops, "unavailable", "no compiler was found")
        monkeypatch.setattr(diagnostics, "_said", set())

    def test_auto_says_once_that_the_reference_serves(self, caught):
        f, w, y = problem()
        for _ in range(3):
            loss = cfal.cfal_loss(f, w, y)
        [message] = messages(caught)
        assert "reference" in message and "no compiler was found" in message
        assert loss == cfal.reference.cfal_loss(f, w, y)

    def test_explicit_reference_says_nothing(self, caught):
        cfal.cfal_loss(*problem(), backend="reference")
        assert messages(caught) == []

    def test_explicit_cpu_raises(self):
        with pytest.raises(RuntimeError, match="backend='cpu' .* no compiler was found"):
            cfal.cfal_loss(*problem(), backend="cpu")


class TestSilence:
    def test_by_filter(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=cfal.CFALWarning)
            train(cfal.CFALLoss(3, 5), [], 4)

    def test_by_call(self, caught):
        cfal.diagnostics.silence()
        train(cfal.CFALLoss(3, 5), [], 4)
        assert messages(caught) == []
        cfal.diagnostics.silence(False)
        train(cfal.CFALLoss(3, 5), [], 4)
        assert len(messages(caught)) == 1

    @pytest.mark.parametrize("value,count", [("1", 0), ("0", 1)])
    def test_by_environment(self, value, count):
        code = (
            "import warnings, cfal_kernels as cfal\n"
            "with warnings.catch_warnings(record=True) as w:\n"
            "    cfal.diagnostics.warn('a warning of this package')\n"
            "print(len(w))"
        )
        env = {**os.environ, "CFAL_SILENCE": value}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.stdout.strip() == str(count), done.stderr


def test_never_while_tracing(caught):
    torch.compiler.reset()
    loss = cfal.CFALLoss(2, 4096)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    compiled(3.0 * torch.randn(8, 4096), torch.randint(2, (8,))).backward()
    assert messages(caught) == []


def test_warning_points_at_the_caller(caught):
    cfal.CFALLoss(2, 64, class_counts=[198738, 78786], beta=0.9)
    train(cfal.CFALLoss(3, 5), [], 3)
    places = [w.filename for w in caught if issubclass(w.category, cfal.CFALWarning)]
    assert places == [__file__, __file__]
