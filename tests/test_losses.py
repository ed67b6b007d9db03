"""What every loss of the experiments has in common, and the softmax losses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional

import cfal_kernels as cfal
from cfal_experiments import losses
from cfal_experiments.errors import InputError
from cfal_experiments.losses.softmax import CrossEntropy, Focal

COUNTS = [400, 30, 20, 10]

# Without compiled kernels the reference serves, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning")

every_loss = pytest.mark.parametrize("name", losses.LOSSES)


def batch(rows: int = 9, dim: int = 6, dtype: torch.dtype = torch.float32):
    """Features [rows, dim] and targets [rows] of four classes."""
    return torch.randn(rows, dim, dtype=dtype, requires_grad=True), torch.arange(rows) % 4


@every_loss
def test_forward_reaches_features_and_every_parameter(name: str):
    loss = losses.build(name, 4, 6, COUNTS)
    features, target = batch()
    value = loss(features, target)
    value.backward()
    assert value.shape == ()
    assert features.grad.abs().sum() > 0
    assert list(loss.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


@every_loss
def test_posteriors_are_the_softmax_of_the_logits(name: str):
    loss = losses.build(name, 4, 6, COUNTS)
    features, _ = batch()
    probabilities = loss.predict_proba(features)
    assert probabilities.shape == (9, 4)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(9))
    assert torch.equal(probabilities, loss.logits(features).softmax(1))


@every_loss
def test_the_head_alone_learns_classes_that_are_apart(name: str):
    fitting = {"sigma": 8.0}  # features of this size
    chosen = {key: value for key, value in fitting.items() if key in losses.options(name)}
    # With unequal weights R may outweigh the class that counts least.
    loss = losses.build(name, 4, 6, [10] * 4, **chosen)
    centres = torch.eye(4, 6) * 3
    target = torch.arange(32) % 4
    features = centres[target] + 0.1 * torch.randn(32, 6)
    optimizer = torch.optim.Adam(loss.parameters(), 0.05)
    before = loss(features, target).item()
    for _ in range(400):  # R comes first: prototypes part evenly before they find their class
        optimizer.zero_grad()
        loss(features, target).backward()
        optimizer.step()
    assert loss(features, target).item() < 0.7 * before
    assert torch.equal(loss.predict_proba(features).argmax(1), target)


@every_loss
def test_state_dict_is_all_there_is(name: str):
    loss = losses.build(name, 4, 6, COUNTS)
    other = losses.build(name, 4, 6, COUNTS)
    other.load_state_dict(loss.state_dict())
    features, target = batch()
    assert torch.equal(loss(features, target), other(features, target))
    assert torch.equal(copy.deepcopy(loss).predict_proba(features), loss.predict_proba(features))


@every_loss
def test_half_precision_costs_half_precision_only(name: str):
    """Under autocast, bfloat16 features give the loss of the same features in float32."""
    loss = losses.build(name, 4, 64, COUNTS)
    features, target = batch(dim=64)
    rounded = features.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(rounded, target)
    expected = loss(rounded.float(), target)
    # The linear head is a bfloat16 product there, as any linear layer; the others stay in float32.
    tolerance = 2e-2 if name in ("cross-entropy", "focal") else 1e-6
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=0)


@every_loss
def test_compiles_without_a_graph_break(name: str):
    loss = losses.build(name, 4, 6, COUNTS)
    features, target = batch()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(features, target), loss(features, target))


@pytest.mark.parametrize("name", [name for name in losses.LOSSES if name != "affinity"])
def test_beta_weights_the_rows_of_rare_classes(name: str):
    """A row of the rarest class counts omega_3 / omega_0 as much against one of the commonest."""
    values = []
    for beta in (0.0, 0.999):
        torch.manual_seed(0)
        loss = losses.build(name, 4, 6, COUNTS, beta=beta)
        features, _ = batch(rows=1)
        values.append([loss(features, torch.tensor([label])).item() for label in (0, 3)])
    (common, rare), (common_weighted, rare_weighted) = values
    weights = cfal.class_balanced_weights(COUNTS, 0.999)
    assert common_weighted == pytest.approx(common * weights[0].item(), rel=1e-5)
    assert rare_weighted == pytest.approx(rare * weights[3].item(), rel=1e-5)


def test_an_unknown_loss_names_the_choices():
    with pytest.raises(InputError, match=r"'cfl'.*did you mean 'cfal'.*arcface.*sphereface"):
        losses.build("cfl", 2, 8, [1, 1])


@every_loss
def test_an_unknown_option_names_the_choices(name: str):
    with pytest.raises(InputError) as caught:
        losses.build(name, 4, 6, COUNTS, sigmo=3)
    message = str(caught.value)
    assert "\n" not in message and repr(name) in message and "'sigmo'" in message
    for option in losses.options(name):
        assert option in message


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cross-entropy", {"label_smoothing": 1.0}, "label_smoothing must be below 1"),
        ("cross-entropy", {"label_smoothing": "much"}, "label_smoothing must be a number"),
        ("focal", {"gamma": -1}, "gamma must be at least 0"),
        ("focal", {"beta": 1.0}, "beta must be in"),
        ("arcface", {"scale": 0}, "scale must be greater than 0"),
        ("arcface", {"margin": 28.6}, "radians"),
        ("arcface", {"monotone": "false"}, "monotone must be True or False"),
        ("cosface", {"margin": math.nan}, "margin must be finite"),
        ("cosface", {"inference": "raw"}, "inference must be one of scaled, authors"),
        ("sphereface", {"factor": 2}, "factor must be one of one-plus, literal"),
        ("cfal", {"sigma": -1.0}, "sigma"),
        ("cfal", {"sigma": "wide"}, "sigma must be one of auto"),
        ("cfal", {"init": "zeros"}, "init must be one of authors, class-means"),
        ("cfal-authors-code", {"gamma": None}, "gamma must be a number"),
    ],
)
def test_a_wrong_value_names_loss_and_option(name: str, options: dict, words: str):
    with pytest.raises(InputError) as caught:
        losses.build(name, 4, 6, COUNTS, **options)
    assert repr(name) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((1, 6, [5]), "num_classes must be at least 2"),
        ((2, 0, [5, 5]), "embedding_dim must be at least 1"),
        ((3, 6, [5, 5]), "2 counts for 3 classes"),
        ((2, 6, [5, 0]), "class 1"),
    ],
)
def test_wrong_sizes_are_told(sizes: tuple, words: str):
    with pytest.raises(InputError, match=words):
        losses.build("focal", *sizes)


def test_cross_entropy_is_torchs_own():
    loss = CrossEntropy(4, 6, COUNTS, label_smoothing=0.1)
    features, target = batch()
    expected = functional.cross_entropy(loss.head(features), target, label_smoothing=0.1)
    torch.testing.assert_close(loss(features, target), expected)


def test_weighted_cross_entropy_is_the_plain_mean_of_weighted_terms():
    loss = CrossEntropy(3, 4, [100, 10, 1], beta=0.999)
    features, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    weights = cfal.class_balanced_weights([100, 10, 1], 0.999)
    log_p = loss.head(features).log_softmax(1)
    expected = -(weights[target] * log_p[torch.arange(6), target]).mean()
    torch.testing.assert_close(loss(features, target), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_loss_is_its_formula(gamma: float):
    """mean of -omega_y (1 - p_y)^gamma log p_y, with p from torch's softmax in float64."""
    loss = Focal(4, 6, COUNTS, gamma=gamma, beta=0.999).double()
    features, target = batch(dtype=torch.float64)
    p = loss.head(features).softmax(1).gather(1, target[:, None])[:, 0]
    expected = (-loss.class_weights[target] * (1 - p) ** gamma * p.log()).mean()
    torch.testing.assert_close(loss(features, target), expected)
    parameters = list(loss.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss(features, target), [features, *parameters]),
        torch.autograd.grad(expected, [features, *parameters]),
    )


def test_focal_loss_without_focus_is_cross_entropy():
    focal, plain = Focal(4, 6, COUNTS, gamma=0.0, beta=None), CrossEntropy(4, 6, COUNTS)
    plain.load_state_dict(focal.state_dict())
    features, target = batch()
    torch.testing.assert_close(focal(features, target), plain(features, target))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_finite_at_certainty(gamma: float):
    """p = 1 in float32: the slope gamma (1 - p)^(gamma - 1) is infinite for gamma < 1."""
    loss = Focal(2, 2, [1, 1], gamma=gamma)
    with torch.no_grad():
        loss.head.weight.copy_(torch.eye(2))
    for scale, target in ((1e3, 0), (1e3, 1)):
        features = torch.tensor([[scale, -scale]], requires_grad=True)
        value = loss(features, torch.tensor([target]))
        (slope,) = torch.autograd.grad(value, features)
        assert value.isfinite() and slope.isfinite().all()
        assert (value < 1e-6) == (target == 0)
