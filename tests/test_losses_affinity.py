"""The affinity family in the experiments: what is handed to the kernels, fitted starts, reports."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import cfal_kernels as cfal
import oracle
from cfal_experiments import losses
from cfal_experiments.errors import InputError
from cfal_experiments.losses.affinity import CFAL, Affinity, ClassBalancedAffinity
from cfal_experiments.losses.authors import CFALAuthorsCode
from support import relative_error

COUNTS = [100, 10, 1]
FAMILY = ("affinity", "class-balanced-affinity", "cfal", "cfal-authors-code")

# Without compiled kernels the reference serves, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning")

family = pytest.mark.parametrize("name", FAMILY)


def embedding(rows: int = 60, dim: int = 5, spread: float = 3.0):
    """Features [rows, dim] around one centre per class, and targets [rows] of three classes."""
    target = torch.arange(rows) % 3
    return spread * torch.randn(3, dim)[target] + 0.3 * torch.randn(rows, dim), target


@pytest.mark.parametrize(
    ("kind", "beta", "gamma"),
    [(Affinity, None, 0.0), (ClassBalancedAffinity, 0.999, 0.0), (CFAL, 0.999, 1.0)],
)
def test_each_is_the_functional_loss_of_its_settings(kind: type, beta, gamma: float):
    options = {"sigma": 8.0, "margin": 0.3, "diversity_weight": 0.5, "centers_per_class": 2}
    options |= {} if beta is None else {"beta": beta}
    options |= {"gamma": gamma, "detach_focal": True} if kind is CFAL else {}
    loss = kind(3, 5, COUNTS, **options)
    features, target = embedding()
    expected = cfal.cfal_loss(
        features,
        loss.head.prototypes,
        target,
        class_weights=None if beta is None else cfal.class_balanced_weights(COUNTS, beta),
        sigma=8.0,
        margin=0.3,
        gamma=gamma,
        diversity_weight=0.5,
        detach_focal=kind is CFAL,
    )
    torch.testing.assert_close(loss(features, target), expected)
    assert loss.head.prototypes.shape == (3, 2, 5)


@oracle.requires_oracle
@pytest.mark.parametrize("name", oracle.NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_authors_code_is_their_recorded_product_of_means(name: str, dtype: torch.dtype):
    case = oracle.load(name)
    features, prototypes, target = case.inputs(dtype)
    options = case.keywords(dtype)
    weights = options.pop("class_weights")
    classes, centres, dim = prototypes.shape
    counts = case.arrays["class_counts"].tolist()
    loss = CFALAuthorsCode(classes, dim, counts, centers_per_class=centres, **options).to(dtype)
    with torch.no_grad():
        loss.head.prototypes.copy_(prototypes)
        loss.class_weights.copy_(weights)
    value = loss(features, target)
    slopes = torch.autograd.grad(value, [features, loss.head.prototypes])
    tolerance = case.tolerance(dtype)
    assert relative_error(value, case.tensor("literal_mean")) < tolerance
    for key, slope in (("grad_literal_f", slopes[0]), ("grad_literal_W", slopes[1])):
        expected = case.tensor(key)
        if expected.isfinite().all():
            assert relative_error(slope, expected) < tolerance, key
        assert slope.isfinite().all()


def test_authors_code_lets_weights_scale_the_batch_only():
    """The direction of the step does not know which row was rare or hard; Eq. 7's does."""
    options = {"sigma": 20.0, "gamma": 1.0, "beta": 0.999}
    authors, plain = CFALAuthorsCode(3, 5, COUNTS, **options), Affinity(3, 5, COUNTS, sigma=20.0)
    paper = CFAL(3, 5, COUNTS, **options)
    features, target = embedding()
    features.requires_grad_()
    steps = []
    for loss in (authors, plain, paper):
        with torch.no_grad():
            loss.head.prototypes.copy_(authors.head.prototypes)
        steps.append(torch.autograd.grad(loss(features, target), features)[0].flatten())
    direction = [torch.nn.functional.normalize(step, dim=0) for step in steps]
    assert direction[0] @ direction[1] > 1 - 1e-5
    assert direction[2] @ direction[1] < 0.99


@family
def test_automatic_sigma_makes_the_typical_affinity_one_half(name: str):
    loss = losses.build(name, 3, 5, COUNTS, sigma="auto")
    features, target = embedding()
    assert loss.needs_initialisation and math.isnan(loss.sigma)
    loss.initialise_from(features, target)
    assert not loss.needs_initialisation
    assert loss.head.affinity(features).median().item() == pytest.approx(0.5, abs=0.01)
    assert loss.sigma == loss.head.sigma == loss.report(features, target)["sigma"]


@family
def test_prototypes_start_at_class_means_that_are_far_apart(name: str):
    loss = losses.build(name, 3, 5, COUNTS, sigma=9.0, init="class-means")
    features, target = embedding()
    assert loss.needs_initialisation
    loss.initialise_from(features, target)
    means = torch.stack([features[target == label].mean(0) for label in range(3)])
    torch.testing.assert_close(loss.head.prototypes[:, 0].detach(), means)
    assert loss.sigma == 9.0 and not loss.needs_initialisation


@pytest.mark.parametrize("centres", [1, 2])
def test_class_means_that_nearly_coincide_are_spread(centres: int):
    """To the authors' mean squared distance of 4 D / C; shape and mean are kept."""
    loss = CFAL(3, 5, COUNTS, sigma="auto", init="class-means", centers_per_class=centres)
    plain = cfal.CFALLoss(3, 5, centers_per_class=centres)
    features, target = embedding()
    features = 7.0 + 0.01 * features
    loss.initialise_from(features, target)
    means = cfal.initialize_prototypes_(plain, features, target).prototypes.detach().flatten(0, 1)
    start = loss.head.prototypes.detach().flatten(0, 1)
    torch.testing.assert_close(start.mean(0), means.mean(0))
    assert torch.pdist(start).square().mean().item() == pytest.approx(4 * 5 / 3, rel=1e-4)
    factor = torch.pdist(start) / torch.pdist(means)
    torch.testing.assert_close(factor, factor[:1].expand_as(factor), rtol=1e-3, atol=0)
    # sigma then fits prototypes at that distance, not features at a hundredth of it.
    assert 1.0 < loss.sigma < 10.0


@pytest.mark.parametrize("name", losses.LOSSES)
def test_other_settings_need_no_data(name: str):
    loss = losses.build(name, 3, 5, COUNTS)
    before = copy.deepcopy(loss.state_dict())
    assert not loss.needs_initialisation
    loss.initialise_from(*embedding())
    after = loss.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_nothing_is_computed_with_a_sigma_that_was_not_fitted():
    loss = CFAL(3, 5, COUNTS, sigma="auto")
    features, target = embedding()
    for use in (
        lambda: loss(features, target),
        lambda: loss.predict_proba(features),
        lambda: loss.report(features, target),
    ):
        with pytest.raises(RuntimeError, match="initialise_from"):
            use()


@pytest.mark.parametrize("options", [{}, {"init": "class-means"}])
def test_a_fitted_start_travels_with_the_state(options: dict, tmp_path):
    loss = CFAL(3, 5, COUNTS, sigma="auto", **options)
    features, target = embedding()
    loss.initialise_from(features, target)
    torch.save(loss.state_dict(), tmp_path / "state.pt")
    resumed = CFAL(3, 5, COUNTS, sigma="auto", **options)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert not resumed.needs_initialisation
    assert resumed.sigma == loss.sigma
    assert torch.equal(resumed(features, target), loss(features, target))


def test_a_state_from_before_the_fit_still_asks_for_it():
    loss = CFAL(3, 5, COUNTS, sigma="auto")
    loss.load_state_dict(CFAL(3, 5, COUNTS, sigma="auto").state_dict())
    assert loss.needs_initialisation


def test_features_without_spread_are_told():
    loss = CFAL(3, 5, COUNTS, sigma="auto", init="class-means")
    with pytest.raises(ValueError, match="no spread"):
        loss.initialise_from(torch.ones(9, 5), torch.arange(9) % 3)


def test_report_of_a_hand_computed_batch():
    """Prototypes at 0, 2 and 100 on a line, sigma = 1 / log 2: a = 2^-q."""
    loss = CFAL(3, 1, COUNTS, sigma=1 / math.log(2), margin=0.1)
    with torch.no_grad():
        loss.head.prototypes.copy_(torch.tensor([0.0, 2.0, 100.0]).view(3, 1, 1))
    # Row 0: a = 1, 1/16, 0, no hinge. Row 1: a = 1/2, 1/2, 0 with own class 1: the hinge to class 0
    # alone.
    report = loss.report(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]))
    distances = torch.tensor([4.0, 10_000.0, 9_604.0], dtype=torch.float64)
    assert report == {
        "sigma": pytest.approx(1 / math.log(2)),
        "own affinity": pytest.approx(3 / 4),
        "other affinity": pytest.approx((1 / 16 + 1 / 2) / 4),
        "active hinges": pytest.approx(1 / 4),
        "zero affinities": pytest.approx(2 / 6),
        "diversity R": pytest.approx(distances.var(correction=0).item()),
    }


def test_reported_diversity_is_that_of_the_kernels():
    loss = Affinity(4, 6, [1] * 4, sigma=50.0, centers_per_class=2)
    features, target = torch.randn(3, 6), torch.tensor([0, 1, 2])
    without = Affinity(4, 6, [1] * 4, sigma=50.0, centers_per_class=2, diversity_weight=0.0)
    without.load_state_dict(loss.state_dict())
    diversity = loss(features, target) - without(features, target)
    assert loss.report(features, target)["diversity R"] == pytest.approx(diversity.item(), rel=1e-4)


def test_two_classes_have_no_diversity():
    loss = CFAL(2, 5, [10, 5])
    assert loss.report(torch.randn(4, 5), torch.tensor([0, 1, 0, 1]))["diversity R"] == 0.0


@pytest.mark.parametrize("name", [name for name in losses.LOSSES if name not in FAMILY])
def test_losses_without_affinities_report_nothing(name: str):
    loss = losses.build(name, 3, 5, COUNTS)
    assert loss.report(*embedding()) == {}


@pytest.mark.parametrize("name", ["cfal", "class-balanced-affinity"])
def test_backend_is_handed_on(name: str):
    loss = losses.build(name, 3, 5, COUNTS, backend="reference")
    assert loss.head.backend == "reference"
    with pytest.raises(InputError, match="backend"):
        losses.build(name, 3, 5, COUNTS, backend="abacus")
