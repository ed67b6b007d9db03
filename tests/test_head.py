"""The head in a model, and the losses on it."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import cfal_kernels as cfal


class Model(nn.Module):
    """A backbone, a head, and a loss on that head as a child."""

    def __init__(self, **keywords):
        super().__init__()
        self.backbone = nn.Linear(6, 5)
        self.head = cfal.PrototypeHead(5, 3, centers_per_class=2, sigma=10.0)
        self.loss = cfal.CFALLoss.from_head(self.head, **keywords)

    def forward(self, x):
        return self.head(self.backbone(x))


@pytest.fixture
def batch():
    return torch.randn(8, 6), torch.randint(3, (8,))


def test_logits_are_the_decision_rule():
    head = cfal.PrototypeHead(5, 3, centers_per_class=2, sigma=10.0)
    f = torch.randn(8, 5)
    q = (f[:, None, None] - head.prototypes).square().sum(-1).amin(2)
    torch.testing.assert_close(head(f), -q / 10.0)
    loss = cfal.CFALLoss.from_head(head)
    assert torch.equal(loss.predict(f), head(f).argmax(1))
    torch.testing.assert_close(loss.predict_proba(f), head(f).softmax(1))
    a = torch.exp(-q / 10.0)
    torch.testing.assert_close(loss.predict_proba(f), a / a.sum(1, keepdim=True))
    torch.testing.assert_close(loss.affinity(f), a)


@pytest.mark.parametrize("kind", [nn.Parameter, torch.Tensor])
def test_prototypes_of_a_head_cannot_be_assigned_on_the_loss(kind):
    head = cfal.PrototypeHead(5, 3)
    loss = cfal.CFALLoss.from_head(head)
    with pytest.raises(AttributeError, match="^the prototypes belong to the head; .*head.proto"):
        loss.prototypes = kind(torch.zeros(3, 1, 5))
    head.prototypes = nn.Parameter(torch.zeros(3, 1, 5))
    assert loss.prototypes is head.prototypes


def test_posteriors_do_not_underflow():
    loss = cfal.CFALLoss(3, 5, sigma=1e-3)
    p = loss.predict_proba(torch.randn(8, 5))
    assert (loss.affinity(torch.randn(8, 5)) == 0.0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(8))


def test_head_trains_with_cross_entropy():
    head = cfal.PrototypeHead(5, 3, sigma=10.0)
    f = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    head.double()
    assert torch.autograd.gradcheck(lambda f, w: head(f), (f, head.prototypes))


def test_logits_of_half_features_are_float32():
    head = cfal.PrototypeHead(5, 3)
    assert head(torch.randn(8, 5).half()).dtype == torch.float32
    assert head(torch.randn(8, 5).double()).dtype == torch.float64


def test_parameter_is_registered_once(batch):
    model = Model()
    assert [n for n, _ in model.named_parameters() if "proto" in n] == ["head.prototypes"]
    assert list(model.loss.parameters()) == []
    assert "loss.prototypes" not in model.state_dict()
    assert model.loss.prototypes is model.head.prototypes
    loss = model.loss(model.backbone(batch[0]), batch[1])
    loss.backward()
    assert model.head.prototypes.grad.abs().sum() > 0


def test_same_loss_as_one_that_owns_its_prototypes(batch):
    model = Model(gamma=1.0)
    f = model.backbone(batch[0])
    own = cfal.CFALLoss(
        3, 5, centers_per_class=2, sigma=10.0, gamma=1.0, init=model.head.prototypes
    )
    assert model.loss(f, batch[1]) == own(f, batch[1])


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_stay_tied(how, batch):
    model = Model()
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert twin.loss.prototypes is twin.head.prototypes
    assert twin.head.prototypes is not model.head.prototypes
    assert list(twin.loss.parameters()) == []
    with torch.no_grad():
        twin.head.prototypes.zero_()
    f = model.backbone(batch[0])
    assert twin.loss(f, batch[1]) != model.loss(f, batch[1])


def test_conversions_of_the_model_reach_the_loss(batch):
    model = Model().double()
    assert model.loss.prototypes.dtype == torch.float64
    assert model.loss(model.backbone(batch[0].double()), batch[1]).dtype == torch.float64


def test_a_replaced_parameter_is_followed():
    model = Model()
    model.load_state_dict(Model().state_dict(), assign=True)
    assert model.loss.prototypes is model.head.prototypes


def test_from_head_without_touching_the_random_stream():
    head = cfal.PrototypeHead(5, 3)
    torch.manual_seed(3)
    cfal.CFALLoss.from_head(head)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))


def test_sigma_is_the_heads():
    head = cfal.PrototypeHead(5, 3, sigma=20.0)
    loss = cfal.CFALLoss.from_head(head, sigma=20.0)
    head.sigma = 30.0
    assert loss.sigma == 30.0
    loss.sigma = 40.0
    assert head.sigma == 40.0
    with pytest.raises(ValueError, match="sigma belongs to the head, which has 40.0"):
        cfal.CFALLoss.from_head(head, sigma=130.0)


def test_contradictions_are_errors():
    head = cfal.PrototypeHead(5, 3)
    with pytest.raises(ValueError, match="num_classes belongs to the head, which has 3"):
        cfal.CFALLoss.from_head(head, num_classes=4)
    with pytest.raises(ValueError, match="init concerns the prototypes"):
        cfal.CFALLoss.from_head(head, init="authors")
    with pytest.raises(TypeError, match="sigma must be a number, got Tensor"):
        cfal.CFALLoss.from_head(head, sigma=torch.tensor([130.0, 1.0]))
    with pytest.raises(TypeError, match="head must be a PrototypeHead, got Linear"):
        cfal.CFALLoss.from_head(nn.Linear(5, 3))


@pytest.mark.parametrize("kind", [cfal.AffinityLoss, cfal.ClassBalancedAffinityLoss])
def test_special_cases_on_a_head(kind, batch):
    head = cfal.PrototypeHead(6, 3, sigma=12.0)
    loss = kind.from_head(head)
    assert type(loss) is kind and loss.sigma == 12.0
    expected = cfal.cfal_loss(batch[0], head.prototypes, batch[1], sigma=12.0, gamma=0.0)
    assert loss(*batch) == expected


def test_repr():
    head = cfal.PrototypeHead(5, 3, centers_per_class=2, sigma=10.0)
    assert repr(head) == "PrototypeHead(5, 3, centers_per_class=2, sigma=10)"
    assert "prototypes of a head" in repr(cfal.CFALLoss.from_head(head))


def test_state_dict_round_trip():
    head, other = cfal.PrototypeHead(5, 3), cfal.PrototypeHead(5, 3)
    other.load_state_dict(head.state_dict())
    assert torch.equal(head.prototypes, other.prototypes)


class TestInitialization:
    def test_class_means(self):
        centres = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, 0.0]])
        y = torch.arange(3).repeat(50)
        f = centres[y] + 0.1 * torch.randn(150, 2)
        head = cfal.PrototypeHead(2, 3)
        assert cfal.initialize_prototypes_(head, f, y) is head
        means = torch.stack([f[y == c].mean(0) for c in range(3)])
        torch.testing.assert_close(head.prototypes.detach()[:, 0], means)

    def test_several_centres_find_the_clusters(self):
        centres = torch.tensor([[[10.0, 0.0], [-10.0, 0.0]], [[0.0, 10.0], [0.0, -10.0]]])
        y = torch.arange(2).repeat_interleave(60)
        which = torch.arange(2).repeat(60)
        f = centres[y, which] + 0.1 * torch.randn(120, 2)
        loss = cfal.initialize_prototypes_(cfal.CFALLoss(2, 2, centers_per_class=2), f, y)
        gap = torch.cdist(loss.prototypes.detach(), centres)  # [C, found, true]
        assert (gap.amin(1) < 0.1).all()

    def test_what_has_no_rows_keeps_its_place(self):
        head = cfal.PrototypeHead(2, 3, centers_per_class=2)
        before = head.prototypes.detach().clone()
        y = torch.tensor([0, 0, 0, 1, -100])
        f = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 9.0], [5.0, 5.0], [float("nan")] * 2])
        cfal.initialize_prototypes_(head, f, y)
        after = head.prototypes.detach()
        assert torch.equal(after[2], before[2])
        assert torch.equal(after[1, 0], torch.tensor([5.0, 5.0]))
        assert torch.equal(after[1, 1], before[1, 1])
        assert after[0].isfinite().all() and not torch.equal(after[0], before[0])

    def test_only_values_change(self):
        head = cfal.PrototypeHead(2, 3)
        parameter = head.prototypes
        cfal.initialize_prototypes_(head, torch.randn(9, 2).half(), torch.arange(3).repeat(3))
        assert head.prototypes is parameter and parameter.requires_grad
        assert parameter.dtype == torch.float32

    @pytest.mark.parametrize("affinity", [0.5, 0.1])
    def test_sigma_puts_the_typical_affinity_where_asked(self, affinity):
        f, w = torch.randn(200, 512), torch.randn(9, 512)
        sigma = cfal.sigma_from_features(f, prototypes=w, affinity=affinity)
        a = torch.exp(-cfal.squared_distances(f, w) / sigma)
        assert a.median().item() == pytest.approx(affinity, rel=1e-3)

    def test_sigma_from_targets_uses_class_means(self):
        y = torch.arange(2).repeat(100)
        f = torch.randn(200, 8) + 3.0 * y[:, None]
        means = torch.stack([f[y == c].mean(0) for c in range(2)])
        expected = cfal.sigma_from_features(f, prototypes=means)
        assert cfal.sigma_from_features(f, y) == pytest.approx(expected, rel=1e-5)
