"""Class-balanced weights against exact arithmetic and their limits."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

import cfal_kernels as cfal

IDC = [198738, 78786]


def exact(counts, beta):
    """(1 - beta) / (1 - beta^n) scaled to sum to C, in rational numbers; beta as a fraction."""
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    return [float(x * len(raw) / sum(raw)) for x in raw]


@pytest.mark.parametrize("beta", ["0.9", "0.99", "0.999", "0.9999"])
def test_against_rational_arithmetic(beta):
    counts = [1, 7, 90, 1500]
    weights = cfal.class_balanced_weights(counts, float(beta))
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(exact(counts, Fraction(beta)), rel=1e-6)
    assert weights.sum().item() == pytest.approx(4.0, rel=1e-6)


def test_beta_zero_is_exactly_ones():
    assert cfal.class_balanced_weights([3, 5000, 70], 0.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("beta", [1e-20, 5e-324])
def test_beta_next_to_zero_is_ones(beta):
    # beta - 1 rounds to -1, whose log1p does not exist.
    assert cfal.class_balanced_weights([3, 5000, 70], beta).tolist() == [1.0, 1.0, 1.0]


def test_beta_near_one_is_inverse_frequency():
    # Written as 1 - beta**n this would be 0 / 0.
    counts = [10, 40, 200]
    weights = cfal.class_balanced_weights(counts, 1.0 - 1e-15)
    inverse = torch.tensor([1 / n for n in counts])
    torch.testing.assert_close(weights, inverse * (3 / inverse.sum()), rtol=1e-5, atol=0)


def test_idc_of_the_paper():
    # paper-notes: exactly ones at beta <= 0.999, .774 / 1.226 at 0.99999
    assert cfal.class_balanced_weights(IDC, 0.999).tolist() == [1.0, 1.0]
    at_best = cfal.class_balanced_weights(IDC, 0.99999).tolist()
    assert at_best == pytest.approx([0.774, 1.226], abs=5e-4)


@pytest.mark.parametrize(
    "kind", [list, tuple, np.array, torch.tensor, lambda c: torch.tensor(c).float()]
)
def test_counts_in_any_container(kind):
    expected = cfal.class_balanced_weights(IDC, 0.9999)
    assert torch.equal(cfal.class_balanced_weights(kind(IDC), 0.9999), expected)


@pytest.mark.parametrize("beta", [1.0, 1.5, -0.1])
def test_beta_out_of_range(beta):
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), got"):
        cfal.class_balanced_weights(IDC, beta)


@pytest.mark.parametrize("beta", ["0.9", None, True, [0.9, 0.9]])
def test_beta_of_a_wrong_type(beta):
    with pytest.raises(TypeError, match="beta must be a number"):
        cfal.class_balanced_weights(IDC, beta)


@pytest.mark.parametrize(
    "counts,message",
    [
        ([5, 0], "positive and finite, got 0 for class 1"),
        ([-1, 5], "positive and finite, got -1 for class 0"),
        ([5.0, float("nan")], "positive and finite, got nan for class 1"),
        ([5.0, float("inf")], "positive and finite, got inf for class 1"),
        ([], r"1-D \[C\], got shape \[0\]"),
        ([[1, 2]], r"1-D \[C\], got shape \[1, 2\]"),
    ],
)
def test_counts_out_of_range(counts, message):
    with pytest.raises(ValueError, match=message):
        cfal.class_balanced_weights(counts, 0.9)


def test_counts_of_a_wrong_type():
    with pytest.raises(TypeError, match="class_counts must be numbers"):
        cfal.class_balanced_weights({"a": 1}, 0.9)


def test_arrays_of_any_layout():
    counts = np.array([300, 40, 900])
    expected = cfal.class_balanced_weights([900, 40, 300], 0.999)
    assert torch.equal(cfal.class_balanced_weights(counts[::-1], 0.999), expected)
    counts.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cfal.class_balanced_weights(counts, 0.999)


def test_complex_numbers_are_none():
    with pytest.raises(TypeError, match=r"class_counts must be numbers \[C\], got list"):
        cfal.class_balanced_weights([1j, 2, 3], 0.9)


def test_floats_keep_their_digits():
    weights = cfal.class_balanced_weights(np.array([1e39, 1.0]), 0.5)
    assert weights.tolist() == pytest.approx([2 / 3, 4 / 3])
