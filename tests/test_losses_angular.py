"""ArcFace, CosFace and SphereFace: the authors' recorded values, another library, the corners."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

import oracle
from cfal_experiments.losses.angular import AngularMarginLoss, ArcFace, CosFace, SphereFace
from support import relative_error

COUNTS = [400, 30, 20, 10]


def at_cosine(loss: AngularMarginLoss, cosine: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One feature whose cosine to class 0 is `cosine`, and the slope of the loss in it."""
    direction = functional.normalize(loss.head.weight[0].detach(), dim=0)
    across = torch.randn_like(direction)
    across = functional.normalize(across - (across @ direction) * direction, dim=0)
    features = cosine * direction + math.sqrt(1 - cosine**2) * across
    features = features[None].requires_grad_()
    value = loss(features, torch.tensor([0]))
    return value, torch.autograd.grad(value, features)[0]


@oracle.requires_oracle
@pytest.mark.parametrize(("name", "kind"), [("arc1", ArcFace), ("cos1", CosFace)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_of_the_authors_code(name: str, kind: type, dtype: torch.dtype):
    case = oracle.load(name)
    scale, margin = float(case.arrays["s"]), float(case.arrays["m"])
    counts, beta = case.arrays["class_counts"].tolist(), float(case.arrays["beta"])
    options = {"monotone": False} if kind is ArcFace else {}
    loss = kind(9, 128, counts, scale=scale, margin=margin, beta=beta, **options).to(dtype)
    assert relative_error(loss.class_weights, case.tensor("class_weights")) < 1e-7
    with torch.no_grad():
        loss.head.weight.copy_(case.tensor("W").T)
        loss.class_weights.copy_(case.tensor("class_weights"))  # ours are rounded to float32
    features = case.tensor("x", dtype).requires_grad_()
    target = torch.from_numpy(case.arrays["y"]).long()
    value = loss(features, target)
    slopes = torch.autograd.grad(value, [features, loss.head.weight])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    found = {
        "cosine": loss.head(features),
        "ce_noclip_mean": value,
        "grad_noclip_x": slopes[0],
        "grad_noclip_W": slopes[1].T,
    }
    for key, actual in found.items():
        assert relative_error(actual, case.tensor(key)) < tolerance, key


@pytest.mark.parametrize("beta", [None, 0.999])
@pytest.mark.parametrize(
    ("kind", "other", "unit"),
    [(ArcFace, "ArcFaceLoss", 180 / math.pi), (CosFace, "CosFaceLoss", 1.0)],
)
def test_pytorch_metric_learning_agrees(kind: type, other: str, unit: float, beta: float | None):
    library = pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import losses, reducers

    loss = kind(4, 6, COUNTS, scale=15.0, margin=0.35, beta=beta).double()
    reducer = (
        reducers.MeanReducer()
        if beta is None
        else reducers.ClassWeightedReducer(loss.class_weights.double())
    )
    expected = getattr(losses, other)(4, 6, margin=0.35 * unit, scale=15.0, reducer=reducer)
    assert library.__version__
    with torch.no_grad():
        expected.W.data = loss.head.weight.detach().T.clone()
    features = torch.randn(64, 6, dtype=torch.float64, requires_grad=True)
    target = torch.arange(64) % 4
    # Features opposite to their class as well, where ArcFace has left its first branch.
    with torch.no_grad():
        features[:4] = -loss.head.weight + 0.01 * features[:4]
    a, b = loss(features, target), expected(features, target)
    assert relative_error(a, b) < 1e-12
    slopes = torch.autograd.grad(a, [features, loss.head.weight])
    others = torch.autograd.grad(b, [features, expected.W])
    assert relative_error(slopes[0], others[0]) < 1e-10
    assert relative_error(slopes[1], others[1].T) < 1e-10


@pytest.mark.parametrize("kind", [ArcFace, CosFace, SphereFace])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cosine", [1.0, -1.0, 1 - 1e-7, -1 + 1e-7])
def test_gradient_is_finite_and_modest_at_the_poles(kind: type, dtype: torch.dtype, cosine: float):
    loss = kind(4, 6, COUNTS).to(dtype)
    value, slope = at_cosine(loss, cosine)
    assert value.isfinite() and slope.isfinite().all()
    # |d loss / df| of a unit feature: the weight times s times the slope of the margin function in
    # theta, which is at most max(1, k), plus the pull of the other classes: s each way.
    assert slope.norm() < 3 * loss.scale * loss.class_weights.max()


@pytest.mark.parametrize("kind", [ArcFace, CosFace, SphereFace])
def test_a_feature_of_zeros_is_finite(kind: type):
    loss = kind(4, 6, COUNTS)
    features = torch.zeros(1, 6, requires_grad=True)
    value = loss(features, torch.tensor([2]))
    value.backward()
    assert value.isfinite() and features.grad.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (ArcFace(4, 6, COUNTS, margin=0.5, monotone=False), lambda theta: math.cos(theta + 0.5)),
        (
            ArcFace(4, 6, COUNTS, margin=0.5),
            lambda theta: (
                math.cos(theta + 0.5)
                if theta <= math.pi - 0.5
                else math.cos(theta) - 0.5 * math.sin(0.5)
            ),
        ),
        (CosFace(4, 6, COUNTS, margin=0.5), lambda theta: math.cos(theta) - 0.5),
        (SphereFace(4, 6, COUNTS, factor="literal"), lambda theta: math.cos(0.35 * theta)),
        (SphereFace(4, 6, COUNTS, monotone=False), lambda theta: math.cos(1.35 * theta)),
        (
            SphereFace(4, 6, COUNTS),
            lambda theta: (
                math.cos(1.35 * theta) if 1.35 * theta <= math.pi else -math.cos(1.35 * theta) - 2.0
            ),
        ),
    ],
    ids=["arcface", "monotone", "cosface", "literal", "one-plus", "one-plus-monotone"],
)
def test_margin_functions(loss: AngularMarginLoss, expected):
    for theta in (0.1, 1.0, 2.0, 2.5, 3.0):
        cosine = torch.tensor(math.cos(theta), dtype=torch.float64)
        assert loss.with_margin(cosine).item() == pytest.approx(expected(theta), abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ArcFace, {}),
        (CosFace, {}),
        (SphereFace, {}),
        (SphereFace, {"margin": 2.5}),  # k theta passes pi three times
    ],
)
def test_an_own_class_further_away_has_a_smaller_logit(kind: type, options: dict):
    """At every angle, and below the cosine without a margin."""
    theta = torch.linspace(0.01, math.pi - 0.01, 400, dtype=torch.float64)
    moved = kind(4, 6, COUNTS, **options).with_margin(theta.cos())
    assert (moved.diff() < 0).all()
    assert (moved < theta.cos()).all()


def blind_loss(loss: AngularMarginLoss) -> float:
    """All class directions on one point, all features opposite to it: nothing is told apart."""
    with torch.no_grad():
        loss.head.weight.copy_(torch.eye(1, 6).expand(4, 6))
    return loss(-torch.eye(1, 6).expand(8, 6), torch.arange(8) % 4).item()


@pytest.mark.parametrize(
    ("kind", "authors"),
    [
        (ArcFace, {"monotone": False}),
        (SphereFace, {"factor": "literal", "monotone": False}),
        (SphereFace, {"monotone": False}),
    ],
)
def test_knowing_nothing_pays_in_the_authors_code_only(kind: type, authors: dict):
    """With a margin proper it costs at least log C; without one next to nothing."""
    settings = {"scale": 30.0, "beta": None}
    assert blind_loss(kind(4, 6, COUNTS, **settings)) > math.log(4)
    assert blind_loss(kind(4, 6, COUNTS, **settings, **authors)) < 0.1


def test_literal_sphereface_helps_its_own_class():
    """m = 0.35 read literally is a negative margin: the own logit grows, the loss shrinks."""
    literal, proper = SphereFace(4, 6, COUNTS, factor="literal"), SphereFace(4, 6, COUNTS)
    cosine = torch.linspace(-0.5, 0.9, 9)
    assert (literal.with_margin(cosine) > cosine).all()
    assert (proper.with_margin(cosine) < cosine).all()


def test_inference_of_the_authors_leaves_the_scale_out():
    features = torch.randn(9, 6)
    scaled, bare = CosFace(4, 6, COUNTS), CosFace(4, 6, COUNTS, inference="authors")
    bare.load_state_dict(scaled.state_dict())
    cosine = scaled.head(features)
    torch.testing.assert_close(scaled.predict_proba(features), (10.0 * cosine).softmax(1))
    torch.testing.assert_close(bare.predict_proba(features), cosine.softmax(1))
    assert torch.equal(bare.logits(features).argmax(1), scaled.logits(features).argmax(1))


def test_the_bare_posterior_of_nine_classes_stays_below_0_28():
    """Directions of a simplex: cosines 1 and -1/8."""
    loss = CosFace(9, 9, [1] * 9, inference="authors")
    with torch.no_grad():
        loss.head.weight.copy_(torch.eye(9) - 1 / 9)
    confidence = loss.predict_proba(loss.head.weight.detach()).diagonal()
    torch.testing.assert_close(confidence, torch.full((9,), 0.278), atol=5e-4, rtol=0)


def test_only_directions_matter():
    loss = ArcFace(4, 6, COUNTS).double()
    features, target = torch.randn(9, 6, dtype=torch.float64), torch.arange(9) % 4
    value = loss(features, target)
    with torch.no_grad():
        loss.head.weight.mul_(7.0)
    torch.testing.assert_close(loss(0.01 * features, target), value)
