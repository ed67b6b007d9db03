"""Bad input is a TypeError or ValueError that names the argument and both sizes, on every door."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import cfal_kernels as cfal
from cfal_kernels import ops
from cfal_kernels.initialization import authors_
from support import needs_kernels, problem

F, W, Y = (7, 5), (4, 2, 5), (7,)


def call(f=None, w=None, y=None, **keywords):
    features, prototypes, target = problem(centres=2)
    return cfal.cfal_loss(
        features if f is None else f,
        prototypes if w is None else w,
        target if y is None else y,
        **keywords,
    )


SHAPES = {
    "features of rank 1": (dict(f=torch.zeros(5)), r"features must be 2-D .* \[5\]"),
    "features of rank 3": (dict(f=torch.zeros(7, 1, 5)), r"features must be 2-D .* \[7, 1, 5\]"),
    "prototypes of rank 1": (dict(w=torch.zeros(5)), r"prototypes must be .* \[5\]"),
    "prototypes of rank 4": (dict(w=torch.zeros(4, 1, 1, 5)), r"prototypes must .* \[4, 1, 1, 5\]"),
    "D": (dict(w=torch.zeros(4, 6)), r"features \[7, 5\] with D = 5 and prototypes \[4, 6\]"),
    "D = 0": (dict(f=torch.zeros(7, 0), w=torch.zeros(4, 0)), r"D >= 1.*\[7, 0\].*\[4, 0\]"),
    "C = 0": (dict(w=torch.zeros(0, 5)), r"prototypes must hold at least one class.* \[0, 5\]"),
    "M = 0": (dict(w=torch.zeros(4, 0, 5)), r"prototypes .* one centre.* \[4, 0, 5\]"),
    "target of rank 2": (dict(y=torch.zeros(7, 1).long()), r"target must be 1-D .* \[7, 1\]"),
    "target of rank 0": (dict(y=torch.tensor(1)), r"target must be 1-D"),
    "B": (dict(y=torch.zeros(6).long()), r"target .* 6 targets for 7 rows"),
    "weights of rank 2": (dict(class_weights=torch.ones(4, 1)), r"class_weights .*\[4\].*\[4, 1\]"),
    "weights of another C": (dict(class_weights=torch.ones(3)), r"class_weights .*\[4\].* \[3\]"),
}


@pytest.mark.parametrize("arguments,message", SHAPES.values(), ids=SHAPES)
def test_shapes(arguments, message, backend):
    with pytest.raises(ValueError, match=message):
        call(**arguments, backend=backend)


TYPES = {
    "features list": (dict(f=[[0.0] * 5] * 7), "features must be a tensor, got list"),
    "features array": (dict(f=np.zeros(F)), "features must be a tensor, got ndarray"),
    "prototypes None-like": (dict(w="w"), "prototypes must be a tensor, got str"),
    "target list": (dict(y=[0] * 7), "target must be a tensor, got list"),
    "features int": (dict(f=torch.zeros(F).long()), "features must be float16.*torch.int64"),
    "prototypes complex": (
        dict(w=torch.zeros(W, dtype=torch.complex64)),
        "prototypes must be float16.*complex64",
    ),
    "target float": (dict(y=torch.zeros(Y)), r"target .*float32.*target.long\(\)"),
    "target uint8": (dict(y=torch.zeros(Y).byte()), r"target .*uint8.*target.long\(\)"),
    "target bool": (dict(y=torch.zeros(Y).bool()), r"target .*bool.*target.long\(\)"),
    "weights list": (dict(class_weights=[1.0] * 4), "class_weights must be a tensor"),
    "weights int": (dict(class_weights=torch.ones(4).int()), "class_weights must be float"),
    "sigma text": (dict(sigma="130"), "sigma must be a number"),
    "sigma None": (dict(sigma=None), "sigma must be a number, got NoneType"),
    "sigma bool": (dict(sigma=True), "sigma must be a number, got the bool True"),
    "sigma vector": (dict(sigma=torch.ones(2)), "sigma must be a number"),
    "gamma learnt": (dict(gamma=torch.tensor(2.0, requires_grad=True)), "gamma .*requires grad"),
    "detach_focal int": (dict(detach_focal=1), "detach_focal must be a bool"),
    "reduction int": (dict(reduction=1), "reduction must be a string"),
    "ignore_index float": (dict(ignore_index=1.5), "ignore_index must be an int"),
    "backend int": (dict(backend=3), "backend must be a string"),
}


@pytest.mark.parametrize("arguments,message", TYPES.values(), ids=TYPES)
def test_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        call(**arguments)


LAYOUTS = {
    "sparse": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "mkldnn": torch.Tensor.to_mkldnn,
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["features", "prototypes"])
def test_layouts(name, layout, backend):
    f, w, y = (x.detach() for x in problem(dtype=torch.float32))
    arguments = {"features": f, "prototypes": w[:, 0], "target": y}
    arguments[name] = LAYOUTS[layout](arguments[name])
    message = rf"{name} must be a dense \(strided\) tensor, got layout torch\.\w+"
    with pytest.raises(TypeError, match=message):
        cfal.cfal_loss(**arguments, backend=backend)
    with pytest.raises(TypeError, match=message):
        cfal.squared_distances(arguments["features"], arguments["prototypes"])


@pytest.mark.parametrize("name", ["target", "class_weights"])
def test_sparse_target_or_weights(name, backend):
    f, w, y = problem()
    arguments = {"target": y, "class_weights": torch.ones(4)}
    arguments[name] = arguments[name].to_sparse()
    with pytest.raises(TypeError, match=f"{name} must be a dense .* torch.sparse_coo"):
        cfal.cfal_loss(f, w, **arguments, backend=backend)


VALUES = {
    "sigma 0": (dict(sigma=0.0), "sigma must be > 0, got 0.0"),
    "sigma negative": (dict(sigma=-1.0), "sigma must be > 0"),
    "sigma nan": (dict(sigma=math.nan), "sigma must be finite"),
    "sigma inf": (dict(sigma=math.inf), "sigma must be finite"),
    "sigma beyond floats": (dict(sigma=10**400), "sigma must be finite"),
    "gamma negative": (dict(gamma=-0.5), "gamma must be >= 0"),
    "gamma nan": (dict(gamma=math.nan), "gamma must be finite"),
    "margin inf": (dict(margin=math.inf), "margin must be finite"),
    "diversity nan": (dict(diversity_weight=math.nan), "diversity_weight must be finite"),
    "reduction": (dict(reduction="avg"), "reduction must be one of .*'avg'"),
    "backend": (dict(backend="gpu"), "backend must be one of auto, cuda, triton.*'gpu'"),
    "learnt weights": (
        dict(class_weights=torch.ones(4, requires_grad=True)),
        "class_weights must not require grad",
    ),
    "huge ignore_index": (dict(ignore_index=2**63), "ignore_index must fit into 64 bits"),
}
TORCH_ONLY = ("backend", "learnt weights")


@pytest.mark.parametrize("arguments,message", VALUES.values(), ids=VALUES)
def test_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


@pytest.mark.parametrize("name", ["features", "prototypes", "target", "class_weights"])
def test_devices(name):
    f, w, y = (x.detach() for x in problem())
    arguments = {"features": f, "prototypes": w, "target": y, "class_weights": torch.ones(4)}
    arguments[name] = arguments[name].to("meta")
    other = "prototypes" if name == "features" else name
    with pytest.raises(ValueError, match=f"features and {other} .*(meta|cpu).*(meta|cpu)"):
        cfal.cfal_loss(**arguments)


@pytest.mark.parametrize("value", [4, -1, 2**40])
def test_target_out_of_range(value, backend):
    f, w, y = problem()
    y[3] = value
    message = rf"target holds {value} at position 3, outside \[0, 4\) for 4 classes .*-100"
    for features in (f, f.detach()):
        with pytest.raises(ValueError, match=message):
            cfal.cfal_loss(features, w.detach(), y, backend=backend)


def test_numbers_of_other_kinds_are_taken(backend):
    expected = call(sigma=10.0, gamma=2.0, margin=1.0, backend=backend)
    assert call(sigma=10, gamma=2, margin=1, backend=backend) == expected
    np_like = dict(sigma=np.float64(10), gamma=np.int32(2), margin=torch.tensor(1.0))
    assert call(**np_like, ignore_index=np.int64(-100), backend=backend) == expected


def test_int32_targets_and_half_weights(backend):
    f, w, y = problem()
    half = torch.tensor([0.5, 1.0, 1.5, 1.0], dtype=torch.float16)
    expected = cfal.cfal_loss(f, w, y, class_weights=half.double(), backend=backend)
    assert cfal.cfal_loss(f, w, y.int(), class_weights=half, backend=backend) == expected


def test_int32_targets_and_an_ignore_index_beyond_them(backend):
    # 2^32 + 1 is 1 in int32, which must not ignore class 1.
    f, w, y = problem()
    assert (y == 1).any()
    expected = cfal.cfal_loss(f, w, y, backend=backend)
    assert cfal.cfal_loss(f, w, y.int(), ignore_index=2**32 + 1, backend=backend) == expected
    y[3] = 9
    with pytest.raises(ValueError, match="target holds 9 at position 3"):
        cfal.cfal_loss(f, w, y.int(), ignore_index=2**32 + 9, backend=backend)


def test_absent_backends_say_why():
    with pytest.raises(RuntimeError, match="backend='cuda' cannot serve this call: "):
        call(backend="cuda")


class TestInference:
    def test_squared_distances(self):
        with pytest.raises(ValueError, match=r"\[7, 5\].*\[4, 6\]"):
            cfal.squared_distances(torch.zeros(F), torch.zeros(4, 6))
        with pytest.raises(TypeError, match="features must be a tensor"):
            cfal.squared_distances([1.0], torch.zeros(4, 6))

    @pytest.mark.parametrize("method", ["predict", "predict_proba", "affinity"])
    def test_loss(self, method):
        loss = cfal.CFALLoss(4, 5)
        with pytest.raises(ValueError, match=r"\[7, 6\].*\[4, 1, 5\]"):
            getattr(loss, method)(torch.zeros(7, 6))

    def test_head(self):
        with pytest.raises(ValueError, match=r"\[7, 6\].*\[4, 1, 5\]"):
            cfal.PrototypeHead(5, 4)(torch.zeros(7, 6))


class TestModules:
    @pytest.mark.parametrize(
        "arguments,error,message",
        [
            (dict(num_classes=0), ValueError, "num_classes must be >= 1, got 0"),
            (dict(embedding_dim=0), ValueError, "embedding_dim must be >= 1, got 0"),
            (dict(centers_per_class=0), ValueError, "centers_per_class must be >= 1"),
            (dict(num_classes=2.0), TypeError, "num_classes must be an int"),
            (dict(sigma=0.0), ValueError, "sigma must be > 0"),
            (dict(gamma=-1.0), ValueError, "gamma must be >= 0"),
            (dict(reduction="avg"), ValueError, "reduction must be one of"),
            (dict(backend="gpu"), ValueError, "backend must be one of"),
            (dict(beta=1.0), ValueError, r"beta must be in \[0, 1\), got 1.0"),
            (dict(beta=-0.1), ValueError, r"beta must be in \[0, 1\)"),
            (dict(class_counts=[1, 2, 3]), ValueError, "3 counts for num_classes = 4"),
            (dict(class_counts=[1, 2, 0, 4]), ValueError, "positive.* 0 for class 2"),
            (dict(class_counts="abcd"), TypeError, "class_counts must be numbers"),
            (dict(class_counts=[None] * 900), TypeError, r"class_counts .* got list$"),
            (dict(class_weights=[None] * 900), TypeError, r"class_weights .* got list$"),
            (dict(num_classes=np.zeros(900)), TypeError, r"num_classes .* int, got ndarray$"),
            (dict(detach_focal=np.zeros(900)), TypeError, r"detach_focal .* bool, got ndarray$"),
            (dict(class_weights=[1.0] * 3), ValueError, r"class_weights .*\[4\].*\[3\]"),
            (dict(class_weights=[1, 1, -1, 1]), ValueError, "class_weights .* -1 for class 2"),
            (dict(class_weights=[1, 1, math.nan, 1]), ValueError, "class_weights .*finite"),
            (dict(class_weights=[1] * 4, class_counts=[1] * 4), ValueError, "exclude each other"),
            (dict(dtype=torch.int64), TypeError, "dtype must be float16.*got torch.int64"),
            (dict(dtype="float32"), TypeError, "dtype must be float16.*got 'float32'"),
            (dict(init="class_means"), ValueError, "initialize_prototypes_"),
            (dict(init=np.zeros((4, 5))), ValueError, "'authors' or a tensor, got ndarray;"),
            (dict(init=torch.zeros(4, 6)), ValueError, r"init .*\[4, 1, 5\], got \[4, 6\]"),
        ],
    )
    def test_constructor(self, arguments, error, message):
        with pytest.raises(error, match=message):
            cfal.CFALLoss(**{"num_classes": 4, "embedding_dim": 5, **arguments})

    def test_head_constructor(self):
        with pytest.raises(ValueError, match="sigma must be > 0"):
            cfal.PrototypeHead(5, 4, sigma=0.0)
        with pytest.raises(ValueError, match="num_classes must be >= 1"):
            cfal.PrototypeHead(5, 0)
        with pytest.raises(TypeError, match="dtype must be float16.*got torch.int64"):
            cfal.PrototypeHead(5, 4, dtype=torch.int64)

    def test_special_cases_refuse_what_they_switch_off(self):
        with pytest.raises(TypeError, match="AffinityLoss has no keyword gamma"):
            cfal.AffinityLoss(4, 5, gamma=2.0)
        with pytest.raises(TypeError, match="AffinityLoss has no keyword class_counts"):
            cfal.AffinityLoss(4, 5, class_counts=[1] * 4)
        with pytest.raises(TypeError, match="ClassBalancedAffinityLoss has no keyword gamma"):
            cfal.ClassBalancedAffinityLoss(4, 5, gamma=2.0)


class TestNumpy:
    """The NumPy door says the same without torch; its arguments are checked before it is opened."""

    @pytest.mark.parametrize("arguments,message", SHAPES.values(), ids=SHAPES)
    def test_shapes(self, arguments, message):
        f, w, y = (x.detach().numpy() for x in problem(centres=2))
        given = {"f": f, "w": w, "y": y}
        given |= {key: value.numpy() for key, value in arguments.items()}
        given = {**given, **{k: v.astype(np.float32) for k, v in given.items() if k not in "fwy"}}
        with pytest.raises(ValueError, match=message):
            cfal.numpy.cfal_loss(given.pop("f"), given.pop("w"), given.pop("y"), **given)

    @pytest.mark.parametrize("name", [name for name in VALUES if name not in TORCH_ONLY])
    def test_values(self, name):
        arguments, message = VALUES[name]
        f, w, y = (x.detach().numpy() for x in problem())
        with pytest.raises(ValueError, match=message):
            cfal.numpy.cfal_loss_and_grad(f, w, y, **arguments)

    def test_dtypes(self):
        f, w, y = (x.detach().numpy() for x in problem())
        with pytest.raises(TypeError, match="features must be float32 or float64, got float16"):
            cfal.numpy.cfal_loss(f.astype(np.float16), w, y)
        with pytest.raises(TypeError, match=r"target .*uint8.*astype\(np.int64\)"):
            cfal.numpy.cfal_loss(f, w, y.astype(np.uint8))

    def test_target_out_of_range(self):
        f, w, y = (x.detach().numpy() for x in problem())
        y[3] = 4
        with pytest.raises(ValueError, match=r"target holds 4 at position 3, outside \[0, 4\)"):
            cfal.numpy.cfal_loss(f, w, y)

    def test_upstream_gradient(self):
        f, w, y = (x.detach().numpy() for x in problem())
        with pytest.raises(ValueError, match=r"grad_output .*\[7\] of the loss, got \[6\]"):
            cfal.numpy.cfal_loss_and_grad(f, w, y, reduction="none", grad_output=np.ones(6))


class TestInitialization:
    def test_wrong_arguments(self):
        head = cfal.PrototypeHead(5, 4)
        with pytest.raises(TypeError, match="module must have .prototypes.*Linear"):
            cfal.initialize_prototypes_(
                torch.nn.Linear(5, 4), torch.zeros(F), torch.zeros(7).long()
            )
        with pytest.raises(ValueError, match=r"\[7, 6\].*\[4, 1, 5\]"):
            cfal.initialize_prototypes_(head, torch.zeros(7, 6), torch.zeros(7).long())
        with pytest.raises(ValueError, match="6 targets for 7 rows"):
            cfal.initialize_prototypes_(head, torch.zeros(F), torch.zeros(6).long())

    def test_sigma(self):
        f, w, y = (x.detach() for x in problem())
        with pytest.raises(ValueError, match="exactly one of target and prototypes"):
            cfal.sigma_from_features(f)
        with pytest.raises(ValueError, match="exactly one of target and prototypes"):
            cfal.sigma_from_features(f, y, prototypes=w)
        with pytest.raises(ValueError, match="affinity must be in"):
            cfal.sigma_from_features(f, y, affinity=1.0)
        with pytest.raises(ValueError, match="no spread"):
            cfal.sigma_from_features(torch.ones(F), torch.zeros(7).long())

    def test_authors_std(self):
        w = authors_(torch.empty(8, 4, 4096))
        assert w.std().item() == pytest.approx(0.5, rel=0.02)  # sqrt(2 / 8)


@needs_kernels
def test_operator_refuses_a_bad_target_itself():
    f, w, y = (x.detach() for x in problem())
    y[2] = 9
    with pytest.raises(RuntimeError, match="cfal: target"):
        ops.forward(f, w, y, None, 1.0, 0.1, 2.0, 1.0, False, 1, -100, 0, False)


@pytest.mark.parametrize(
    ("features", "prototypes"),
    [
        ((1, 2**60), (4, 2**60)),
        ((1, 2**56), (64, 2**56)),
        ((1, 1), (2**62, 1)),
        ((1, 1), (4, 2**60, 1)),
    ],
)
def test_sizes_whose_products_overflow_are_refused(features, prototypes):
    """Expanded views can claim any size; none may reach a kernel as a wrapped product."""
    f = torch.zeros(1).expand(features)
    w = torch.zeros(1).expand(prototypes)
    with pytest.raises((ValueError, MemoryError), match="too large|memory|alloc"):
        cfal.cfal_loss(f, w, torch.zeros(1, dtype=torch.int64))


@needs_kernels
def test_an_expanded_view_beyond_all_sizes():
    f, w = torch.zeros(1, 1).expand(1 << 40, 1 << 22), torch.zeros(1, 1).expand(3, 1 << 22)
    with pytest.raises(ValueError, match=r"features \[1099511627776, 4194304\] and prototypes"):
        cfal.cfal_loss(f, w, torch.zeros(1, dtype=torch.int64).expand(1 << 40), backend="cpu")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors(backend):
    f = torch.nested.nested_tensor([torch.zeros(5), torch.zeros(5)])
    with pytest.raises(TypeError, match="features must be a dense .* nested"):
        cfal.cfal_loss(f, torch.zeros(3, 5), torch.zeros(2, dtype=torch.int64), backend=backend)


def test_a_tensor_whose_storage_was_freed_is_refused():
    features = torch.randn(8, 6)
    features.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError):
        cfal.cfal_loss(features, torch.randn(3, 6), torch.zeros(8, dtype=torch.int64))
