"""CFALLoss and its special cases as modules: parameters, state, copies, conversions, training."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune

import cfal_kernels as cfal
from support import problem, relative_error

COUNTS = [900, 40, 300]


@pytest.fixture
def batch():
    return torch.randn(8, 5), torch.randint(3, (8,))


def make(**keywords):
    return cfal.CFALLoss(3, 5, sigma=10.0, **keywords)


def test_forward_is_the_functional(batch, backend):
    loss = make(
        centers_per_class=2, margin=0.3, gamma=1.5, diversity_weight=0.5, class_counts=COUNTS,
        beta=0.999, detach_focal=True, reduction="sum", ignore_index=1, backend=backend,
    )  # fmt: skip
    expected = cfal.cfal_loss(
        batch[0], loss.prototypes, batch[1],
        class_weights=cfal.class_balanced_weights(COUNTS, 0.999), sigma=10.0, margin=0.3, gamma=1.5,
        diversity_weight=0.5, detach_focal=True, reduction="sum", ignore_index=1, backend=backend,
    )  # fmt: skip
    assert loss(*batch) == expected


def test_special_cases(batch, backend):
    plain = make(gamma=0.0)
    affinity = cfal.AffinityLoss(3, 5, sigma=10.0, init=plain.prototypes, backend=backend)
    assert affinity(*batch).item() == pytest.approx(plain(*batch).item(), rel=1e-6)
    keywords = {"class_counts": COUNTS, "beta": 0.999, "sigma": 10.0}
    balanced = cfal.ClassBalancedAffinityLoss(3, 5, init=plain.prototypes, **keywords)
    expected = cfal.CFALLoss(3, 5, gamma=0.0, init=plain.prototypes, **keywords)
    assert balanced(*batch) == expected(*batch)


def test_parameter_and_buffer():
    loss = make(centers_per_class=2)
    assert isinstance(loss.prototypes, nn.Parameter)
    assert loss.prototypes.shape == (3, 2, 5) and loss.prototypes.dtype == torch.float32
    assert [n for n, _ in loss.named_parameters()] == ["prototypes"]
    assert [n for n, _ in loss.named_buffers()] == ["class_weights"]
    assert torch.equal(loss.class_weights, torch.ones(3))
    weighted = make(class_counts=COUNTS, beta=0.99)
    assert torch.equal(weighted.class_weights, cfal.class_balanced_weights(COUNTS, 0.99))
    assert torch.equal(make(class_weights=[1, 2, 3]).class_weights, torch.tensor([1.0, 2.0, 3.0]))


def test_given_weights_are_copied():
    given = torch.tensor([1.0, 2.0, 3.0])
    loss = make(class_weights=given)
    given.zero_()
    assert loss.class_weights.tolist() == [1.0, 2.0, 3.0]


def test_initial_prototypes():
    loss = cfal.CFALLoss(8, 4096)
    assert loss.prototypes.std().item() == pytest.approx(0.5, rel=0.02)  # sqrt(2 / 8)
    start = torch.randn(3, 5)
    given = make(init=start)
    assert torch.equal(given.prototypes.detach()[:, 0], start)
    assert given.prototypes.data_ptr() != start.data_ptr()


def test_state_dict_round_trip(batch):
    loss, other = make(class_counts=COUNTS, beta=0.99), make()
    assert set(loss.state_dict()) == {"prototypes", "class_weights"}
    buffer = io.BytesIO()
    torch.save(loss.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert loss(*batch) == other(*batch)  # the weights came along


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(how, batch):
    loss = make(class_counts=COUNTS, beta=0.99)
    loss(*batch).backward()
    twin = how(loss)
    assert twin(*batch) == loss(*batch)
    assert twin.prototypes is not loss.prototypes
    assert [n for n, _ in twin.named_parameters()] == ["prototypes"]


def test_a_new_parameter_can_be_assigned(batch):
    loss = make()
    loss.prototypes = nn.Parameter(torch.zeros(3, 1, 5))
    assert [n for n, _ in loss.named_parameters()] == ["prototypes"]
    assert (loss.prototypes == 0).all()


def test_parametrization(batch):
    loss = make()

    class Normalise(nn.Module):
        def forward(self, w):
            return nn.functional.normalize(w, dim=-1)

    nn.utils.parametrize.register_parametrization(loss, "prototypes", Normalise())
    torch.testing.assert_close(loss.prototypes.norm(dim=-1), torch.ones(3, 1))
    loss(*batch).backward()
    assert loss.parametrizations.prototypes.original.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_dtype(dtype, batch, backend):
    loss = make(class_counts=COUNTS, beta=0.999, backend=backend)
    weights = loss.class_weights.clone()
    before = loss(*batch)
    loss.to(dtype)
    assert loss.prototypes.dtype == dtype
    assert loss.class_weights.dtype == torch.float32 and torch.equal(loss.class_weights, weights)
    after = loss(batch[0].to(dtype), batch[1])
    assert after.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert after.item() == pytest.approx(before.item(), rel=0.05)
    after.backward()
    assert loss.prototypes.grad.dtype == dtype


def test_to_device():
    loss = make().to("meta")
    assert loss.prototypes.is_meta and loss.class_weights.is_meta
    assert loss(torch.empty(8, 5, device="meta"), torch.empty(8, device="meta").long()).shape == ()
    assert make(device="meta").prototypes.is_meta
    assert make(dtype=torch.float64).prototypes.dtype == torch.float64


@pytest.mark.parametrize("init", ["authors", torch.arange(15.0).reshape(3, 5)])
def test_reset_after_the_meta_device(init, batch):
    loss = make(class_counts=COUNTS, beta=0.99, init=init, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (loss.prototypes, loss.class_weights):
            tensor.fill_(float("nan"))
    parameter = loss.prototypes
    loss.reset_parameters()
    assert torch.equal(loss.class_weights, cfal.class_balanced_weights(COUNTS, 0.99))
    assert loss.prototypes is parameter and parameter.requires_grad
    if isinstance(init, str):
        assert 0.4 < parameter.std() < 1.4  # sqrt(2 / 3) from 15 draws
    else:
        assert torch.equal(parameter.detach()[:, 0], init)
    assert loss(*batch).isfinite()


def test_the_meta_device_as_default(batch):
    with torch.device("meta"):
        loss = make(class_counts=COUNTS)
    assert loss.prototypes.is_meta and loss.class_weights.is_meta
    loss.to_empty(device="cpu").reset_parameters()
    assert torch.equal(loss.class_weights, cfal.class_balanced_weights(COUNTS, 0.9999))
    assert loss(*batch).isfinite()


def test_float64_as_default_dtype():
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        dtypes = {make().class_weights.dtype, make().prototypes.dtype}
    finally:
        torch.set_default_dtype(before)
    assert dtypes == {torch.float32}


def test_fake_tensors_say_nothing_about_sigma(batch):
    with FakeTensorMode() as mode:
        loss = make()
        f, y = (mode.from_tensor(x) for x in batch)
        assert loss(f.requires_grad_(), y).shape == ()


def test_pruning(batch):
    loss = make()
    whole = loss(*batch)
    prune.l1_unstructured(loss, "prototypes", amount=0.4)
    assert (loss.prototypes == 0).sum() == 6 and loss(*batch) != whole
    loss(*batch).backward()
    assert [name for name, _ in loss.named_parameters()] == ["prototypes_orig"]
    prune.remove(loss, "prototypes")
    assert [name for name, _ in loss.named_parameters()] == ["prototypes"]
    assert (loss.prototypes == 0).sum() == 6


def test_a_replica_takes_plain_tensors(batch):
    # What DataParallel does to each module on each device.
    loss = make()
    replica = loss._replicate_for_data_parallel()
    replica.prototypes = loss.prototypes.detach().clone()
    assert replica(*batch) == loss(*batch) and list(replica.parameters()) == []


def test_reset_leaves_the_prototypes_to_their_head():
    head = cfal.PrototypeHead(5, 3)
    loss = cfal.CFALLoss.from_head(head, class_weights=[1.0, 2.0, 3.0])
    before = head.prototypes.detach().clone()
    loss.class_weights.zero_()
    loss.reset_parameters()
    assert loss.class_weights.tolist() == [1.0, 2.0, 3.0]
    assert torch.equal(head.prototypes, before)


def test_repr_tells_what_the_constructor_was_told():
    loss = make(class_counts=COUNTS, beta=0.99, detach_focal=True, backend="reference")
    assert repr(loss) == (
        "CFALLoss(3, 5, centers_per_class=1, sigma=10, margin=0.1, gamma=2, diversity_weight=1, "
        "reduction='mean', class-balanced with beta=0.99, detach_focal=True, backend='reference')"
    )


def test_repr_rounds_nothing():
    text = repr(make(class_counts=COUNTS, beta=0.9999999, margin=0.12345678))
    assert "beta=0.9999999" in text and "margin=0.12345678" in text


def test_sigma_can_be_changed_and_is_checked(batch):
    loss = make()
    loss.sigma = 20
    assert loss(*batch) == cfal.cfal_loss(batch[0], loss.prototypes, batch[1], sigma=20.0)
    with pytest.raises(ValueError, match="sigma must be > 0"):
        loss.sigma = 0.0


def test_training_separates_classes(backend):
    # Two rings of features that a linear map separates: the loss must learn it with its prototypes.
    f, _, _ = problem(rows=120, classes=3, dim=6, dtype=torch.float32)
    f = f.detach()
    y = f[:, :3].argmax(1)
    model = nn.Linear(6, 4)
    loss = cfal.CFALLoss(3, 4, sigma=8.0, backend=backend)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=0.05)
    first = None
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(model(f), y)
        value.backward()
        optimizer.step()
        first = first or value.item()
    assert value.item() < 0.5 * first
    assert (loss.predict(model(f)) == y).float().mean() > 0.9


def test_backends_agree_through_training():
    states = []
    for backend in ("reference", "auto"):
        torch.manual_seed(0)
        model = nn.Linear(6, 5)
        loss = make(class_counts=COUNTS, beta=0.99, backend=backend)
        optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            loss(model(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
            optimizer.step()
        states.append(loss.prototypes.detach())
    assert relative_error(*states) < 1e-5


def test_per_sample_gradients(batch):
    loss = make(backend="reference")
    assert loss._watch is not None  # still looking at training, which a transform must not meet
    f, y = batch

    def of_one(parameters, f, y):
        return torch.func.functional_call(loss, parameters, (f[None], y[None]))

    parameters = {name: p.detach() for name, p in loss.named_parameters()}
    gradients = torch.func.vmap(torch.func.grad(of_one), (None, 0, 0))(parameters, f, y)
    for row in range(len(f)):
        (expected,) = torch.autograd.grad(loss(f[row : row + 1], y[row : row + 1]), loss.prototypes)
        assert relative_error(gradients["prototypes"][row], expected) < 1e-5


def test_prediction_needs_no_grad(batch):
    loss = make()
    f = batch[0].requires_grad_()
    assert loss.predict(f).dtype == torch.int64 and loss.predict(f).shape == (8,)
    assert not loss.predict_proba(f).requires_grad
    assert loss.affinity(f).requires_grad


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic, batch):
    torch.compiler.reset()
    loss = make(class_counts=COUNTS, beta=0.99)
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic)
    for rows in (8, 5):
        f, y = batch[0][:rows], batch[1][:rows]
        assert compiled(f, y).item() == pytest.approx(loss(f, y).item(), rel=1e-6)


def test_loss_on_a_head_compiles_in_one_graph(batch):
    torch.compiler.reset()
    head = cfal.PrototypeHead(5, 3, sigma=10.0)
    loss = cfal.CFALLoss.from_head(head)
    compiled = torch.compile(loss, fullgraph=True)
    assert compiled(*batch).item() == pytest.approx(loss(*batch).item(), rel=1e-6)
