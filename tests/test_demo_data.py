"""Data of the demo that the harness does not have: long-tailed digits, a sample of patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("jsonargparse")

from cfal_experiments.data.collection import Collection  # noqa: E402
from cfal_experiments.demo import digits, tasks  # noqa: E402


def test_long_tail_profile_is_geometric_between_its_ends():
    assert digits.long_tail_profile(1000, 4, 1000.0) == [1000, 100, 10, 1]
    assert digits.long_tail_profile(20, 3, 100.0) == [20, 2, 1]  # 0.2 is raised to one image
    assert digits.long_tail_profile(7, 1, 100.0) == [7]


def test_long_tailed_digits_keep_the_test_part_balanced():
    images = digits.load()
    split = digits.long_tailed_split(images, seed=3)
    largest = max(images.counts(split.train))
    profile = digits.long_tail_profile(largest, 10, 100.0)
    assert sorted(images.counts(split.train), reverse=True) == profile
    for rows in (split.validation, split.test):
        counts = images.counts(rows)
        assert max(counts) - min(counts) <= 3
    rows = np.concatenate(list(split.parts().values()))
    assert len(np.unique(rows)) == len(rows)


def test_splits_depend_on_the_seed_and_on_nothing_else():
    images = digits.load()
    first, again, other = (digits.long_tailed_split(images, seed) for seed in (1, 1, 2))
    for name, rows in first.parts().items():
        np.testing.assert_array_equal(rows, again.parts()[name])
    assert images.counts(first.train) != images.counts(other.train)


def test_sampling_takes_whole_patients():
    patients = np.repeat([f"p{number}" for number in range(20)], 10)
    paths = np.array([f"{patient}/{row}" for row, patient in enumerate(patients)])
    labels = np.arange(200, dtype=np.int64) % 2
    every = Collection(Path("idc"), "idc", paths, labels, ("negative", "positive"), patients)
    kept = tasks.sample_patients(every, limit=55, seed=0)
    assert len(kept) == 50
    assert len(set(kept.groups)) == 5
    assert set(kept.paths) <= set(paths)
    assert tasks.sample_patients(every, 0, 0) is every
    assert tasks.sample_patients(every, len(every), 0) is every
