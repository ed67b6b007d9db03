"""The compiled NumPy module itself: its own checks, its threads, and the arrays it is given."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cfal_kernels import _build
from cfal_kernels import numpy as cfal_numpy

if _build.find(_build.NUMPY_DOOR) is None:
    pytest.skip(_build.why_missing(_build.NUMPY_DOOR), allow_module_level=True)

FEW, MANY = 0, 1


def inputs(rows=130, classes=70, dim=40, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((rows, dim)).astype(dtype)
    prototypes = rng.standard_normal((classes, 1, dim)).astype(dtype)
    return features, prototypes, rng.integers(0, classes, rows)


def arguments(regime, dim=40):
    # class_weights, sigma, margin, gamma, diversity_weight, detach_focal, reduction (sum),
    # ignore_index
    return (None, 2.0 * dim, 0.1, 2.0, 1.0, False, 2, -100, regime)


def run(door, arrays, regime, threads):
    rest = arguments(regime)
    alone = door.forward(*arrays, *rest, threads=threads)
    one = np.ones((), alone.dtype)
    return alone, *door.value_and_grad(one, *arrays, *rest, threads=threads)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("regime", [FEW, MANY])
def test_bitwise_equal_for_every_number_of_threads(regime, dtype):
    door = cfal_numpy._door()
    arrays = inputs(dtype=dtype)
    serial = run(door, arrays, regime, threads=1)
    for threads in (2, 3, 7):
        for one, other in zip(serial, run(door, arrays, regime, threads), strict=True):
            np.testing.assert_array_equal(one, other)


def test_calls_from_several_threads_do_not_disturb_one_another():
    door = cfal_numpy._door()
    cases = [inputs(seed=seed) for seed in range(4)]
    alone = [run(door, arrays, MANY, threads=1) for arrays in cases]
    together = [None] * len(cases)

    def work(n):
        for _ in range(5):
            together[n] = run(door, cases[n], MANY, threads=2)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(len(cases))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_strided_arrays_are_read_in_place():
    door = cfal_numpy._door()
    features, prototypes, target = inputs()
    wide = np.full((260, 80), np.nan, np.float32)
    wide[::2, ::-2] = features
    views = (wide[::2, ::-2], prototypes[::-1], len(prototypes) - 1 - target)
    for regime in (FEW, MANY):
        rest = arguments(regime)
        ours = door.forward(*views, *rest)
        straight = (features, np.ascontiguousarray(prototypes[::-1]), views[2])
        np.testing.assert_array_equal(ours, door.forward(*straight, *rest))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f, w, y: (f[:, 1:], w, y), ValueError, "39 columns, prototypes 40"),
        (lambda f, w, y: (f[1:], w, y), ValueError, "129 rows, target 130"),
        (lambda f, w, y: (f, w[:, 0], y), ValueError, "2, 3 and 1 dimensions"),
        (lambda f, w, y: (f, w, y + 70), ValueError, "expected 0 <= target < 70"),
        (lambda f, w, y: (f, w, -y - 1), ValueError, "expected 0 <= target < 70"),
        (lambda f, w, y: (f, w, y.astype(np.int16)), TypeError, "int64 or int32"),
        (lambda f, w, y: (f.astype(">f4"), w, y), TypeError, "native byte order"),
        (lambda f, w, y: (f.astype(np.complex64), w, y), TypeError, "float16, float32 or"),
        (lambda f, w, y: (unaligned(f), w, y), ValueError, "aligned"),
        (lambda f, w, y: (f[:, :0], w[..., :0], y), ValueError, "must not be empty"),
    ],
)
def test_a_direct_call_reads_nothing_that_is_not_there(change, error, message):
    door = cfal_numpy._door()
    with pytest.raises(error, match=message):
        door.forward(*change(*inputs()), *arguments(FEW))


def test_the_upstream_gradient_has_the_shape_of_the_loss():
    door = cfal_numpy._door()
    for wrong in (np.ones(130, np.float32), np.ones((1, 1), np.float32)):
        with pytest.raises(ValueError, match="shape of the loss"):
            door.value_and_grad(wrong, *inputs(), *arguments(FEW))
    with pytest.raises(ValueError, match="grad_loss must be float32 or float64"):
        door.value_and_grad(np.ones((), np.float16), *inputs(), *arguments(FEW))


def test_the_loss_is_the_same_with_and_without_gradients():
    door = cfal_numpy._door()
    for regime in (FEW, MANY):
        alone, loss, *_ = run(door, inputs(), regime, threads=2)
        np.testing.assert_array_equal(alone, loss)


def unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    view = memory.view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def test_the_package_copies_what_the_module_refuses():
    features, prototypes, target = inputs()
    want = cfal_numpy.cfal_loss_and_grad(features, prototypes, target, sigma=80.0)
    for f, w, y in (
        (unaligned(features), unaligned(prototypes), unaligned(target)),
        (features.astype(">f4"), prototypes.astype(">f4"), target.astype(">i4")),
    ):
        got = cfal_numpy.cfal_loss_and_grad(f, w, y, sigma=80.0)
        for one, other in zip(want, got, strict=True):
            np.testing.assert_array_equal(one, other)
