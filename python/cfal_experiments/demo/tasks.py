"""The two comparisons of the demo, with the settings that `cfal_experiments.demo.tuning` chose."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cfal_experiments.demo import digits, idc, splits
from cfal_experiments.demo.comparison import Task
from cfal_experiments.demo.mlp import MLP
from cfal_experiments.demo.samples import Samples
from cfal_experiments.demo.training import Budget, Recipe
from cfal_experiments.models import AlexNet32
from cfal_experiments.progress import bar

NAMED_FILES = 5  # unreadable files beyond these are only counted


def rarest_three(class_counts: Sequence[int]) -> list[int]:
    """The three classes with the fewest training samples."""
    return np.argsort(class_counts, kind="stable")[:3].tolist()


def positive_class(class_counts: Sequence[int]) -> list[int]:
    """Class 1, the rare one of IDC."""
    return [1]


def digits_task() -> Task:
    """Long-tailed digits, a network of one hidden layer."""
    samples = digits.load()
    return Task(
        name="digits",
        title="Long-tailed handwritten digits: softmax cross-entropy against CFAL",
        facts=(
            ("data", f"{len(samples):,} digits of 8 x 8 pixels from scikit-learn, 10 classes"),
            (
                "long tail",
                "training images per class fall geometrically 100:1; the seed draws which digits "
                "are rare",
            ),
        ),
        samples=samples,
        split=partial(digits.long_tailed_split, samples),
        split_text="stratified; validation and test stay balanced",
        build_model=partial(MLP, 64, 128, 64),
        minority=rarest_three,
        minority_text="mean recall of the three classes with the fewest training images",
        budget=Budget(epochs=100, patience=20),
        recipes=(
            Recipe("cross-entropy", {"label_smoothing": 0.1}, 0.01, 0.1),
            Recipe("weighted cross-entropy", {"label_smoothing": 0.1, "beta": 0.999}, 0.001, 0.1),
            Recipe(
                "cfal",
                {"sigma": 430.0, "margin": 0.1, "gamma": 0.5, "beta": 0.9999, "detach_focal": True},
                learning_rate=0.003,
            ),
        ),
        settings_text="chosen on validation parts of seeds 1000-1004, 16 trials each (tuning.py)",
        columns=("macro F1", "minority recall", "accuracy"),
        seeds=8,
        threads=1,  # steps of a millisecond: a second thread costs more than it brings
    )


def idc_task(samples: Samples, facts: tuple[tuple[str, str], ...] = ()) -> Task:
    """IDC patches split by patient, AlexNet at 32 x 32."""
    return Task(
        name="idc",
        title="IDC breast patches: softmax cross-entropy against CFAL",
        facts=facts,
        samples=samples,
        split=partial(splits.by_group, samples),
        split_text="by patient, stratified by class",
        build_model=AlexNet32,
        minority=positive_class,
        minority_text="recall of the positive class",
        budget=Budget(epochs=12, patience=4, flips=True),
        recipes=(
            Recipe("cross-entropy", {"label_smoothing": 0.1}, 0.001, 0.01),
            Recipe("weighted cross-entropy", {"label_smoothing": 0.1, "beta": 0.999}, 0.001, 0.1),
            Recipe("cfal", {"sigma": 32.0, "margin": 0.1, "gamma": 0.5, "beta": 0.999}, 0.001, 0.1),
        ),
        settings_text="chosen on the validation part of seed 1000, 8 trials each (tuning.py)",
        columns=("macro F1", "positive F1", "minority recall", "accuracy", "balanced accuracy"),
        seeds=3,
        threads=2,
    )


def load_idc_task(folder: Path, max_patches: int = 0) -> Task:
    """The IDC comparison on a folder of patches, read with a progress bar.

    Raises:
        InputError: the folder holds nothing to learn from.
    """
    found = idc.find_patches(folder)
    patches = idc.sample_patients(found, max_patches, seed=0)
    with bar(len(patches), "reading patches", "patch") as progress:
        samples, reading = idc.load(folder, patches, on_patch=progress.update)
    for path, reason in reading.unreadable[:NAMED_FILES]:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if len(reading.unreadable) > NAMED_FILES:
        print(f"skipped {len(reading.unreadable) - NAMED_FILES:,} more", file=sys.stderr)
    negative, positive = samples.counts(np.arange(len(samples)))
    used = f"{len(samples):,} patches of {len(np.unique(samples.groups)):,} patients"
    left = len(found) - len(patches)
    facts = (
        ("data", f"{folder}"),
        ("", f"{used}: {negative:,} negative, {positive:,} positive"),
        ("", f"{reading.odd_sizes:,} are not 50 x 50; all are resized to 32 x 32"),
        ("", f"{len(reading.unreadable):,} unreadable, skipped"),
    )
    if left:
        facts += (("", f"{left:,} left out by --max-patches {max_patches}, whole patients"),)
    return idc_task(samples, facts)
