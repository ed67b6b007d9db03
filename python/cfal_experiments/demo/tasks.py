"""The two comparisons of the demo."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cfal_experiments.data.check import Findings, check
from cfal_experiments.data.collection import Collection
from cfal_experiments.data.images import ImageSet
from cfal_experiments.data.layouts import open_collection
from cfal_experiments.data.prepare import prepare
from cfal_experiments.demo import digits
from cfal_experiments.demo.comparison import Recipe, Task
from cfal_experiments.demo.mlp import MLP
from cfal_experiments.errors import InputError
from cfal_experiments.models import AlexNet32
from cfal_experiments.progress import bar
from cfal_experiments.training import configuration, source
from cfal_experiments.training.config import Config

NAMED_FILES = 5  # unreadable files beyond these are only counted
SIZE = 32


def rarest_three(class_counts: Sequence[int]) -> list[int]:
    """The three classes with the fewest training images."""
    return np.argsort(class_counts, kind="stable")[:3].tolist()


def positive_class(class_counts: Sequence[int]) -> list[int]:
    """Class 1, the rare one of IDC."""
    return [1]


def digits_task() -> Task:
    """Long-tailed digits, a network of one hidden layer."""
    images = digits.load()
    base = Config()
    base.data.flips = False
    base.training.epochs, base.training.patience = 100, 20
    return Task(
        title="Long-tailed handwritten digits: softmax cross-entropy against CFAL",
        facts=(
            ("data", f"{len(images):,} digits of 8 x 8 pixels from scikit-learn, 10 classes"),
            (
                "long tail",
                "training images per class fall geometrically 100:1; the seed draws which digits "
                "are rare",
            ),
        ),
        images=images,
        split=partial(digits.long_tailed_split, images),
        split_text="stratified; validation and test stay balanced",
        build_model=partial(MLP, 64, 128, 64),
        minority=rarest_three,
        minority_text="mean recall of the three classes with the fewest training images",
        recipes=(
            recipe("cross-entropy", base, learning_rate=0.01, decay=0.01, label_smoothing=0.1),
            recipe(
                "weighted cross-entropy",
                base,
                learning_rate=0.001,
                decay=0.01,
                label_smoothing=0.1,
                beta=0.99,
            ),
            recipe(
                "cfal",
                base,
                learning_rate=0.01,
                decay=0.1,
                sigma=32.0,
                margin=0.5,
                gamma=1.0,
                beta=0.999,
                detach_focal=True,
            ),
        ),
        settings_text="chosen on validation parts of seeds 1000-1004, 16 trials each (tuning.py)",
        columns=("macro F1", "minority recall", "accuracy"),
        seeds=8,
        threads=1,  # steps of a millisecond: a second thread costs more than it brings
    )


def recipe(
    name: str, base: Config, *, learning_rate: float, decay: float, **options: object
) -> Recipe:
    """A recipe with the budget of `base`; the last word of its name is that of the loss."""
    values: Mapping[str, object] = {
        "loss.name": name.split()[-1],
        **{f"loss.{option}": value for option, value in options.items()},
        "optimizer.learning_rate": learning_rate,
        "optimizer.weight_decay": decay,
    }
    return Recipe(name, configuration.override(base, values))


def idc_task(images: ImageSet, facts: tuple[tuple[str, str], ...] = ()) -> Task:
    """IDC patches split by patient, AlexNet at 32 x 32, with the tuned presets."""
    budget = {"training.epochs": 12, "training.patience": 4}
    plain, cfal = (
        configuration.override(configuration.load(name), budget)
        for name in ("idc_cross_entropy_tuned", "idc_cfal_tuned")
    )
    weighted = configuration.override(plain, {"loss.beta": 0.999})
    return Task(
        title="IDC breast patches: softmax cross-entropy against CFAL",
        facts=facts,
        images=images,
        # One split for all seeds: on the data of the search its test patients took no part there.
        split=lambda seed: source.make_split(plain, images),
        split_text=f"by patient, stratified by class, split seed {plain.seeds.split}",
        build_model=AlexNet32,
        minority=positive_class,
        minority_text="recall of the positive class",
        recipes=(
            Recipe("cross-entropy", plain),
            Recipe("weighted cross-entropy", weighted),
            Recipe("cfal", cfal),
        ),
        settings_text="of the presets idc_cross_entropy_tuned (beta added) and idc_cfal_tuned",
        columns=("macro F1", "positive F1", "minority recall", "accuracy", "balanced accuracy"),
        seeds=3,
        threads=2,
    )


def load_idc_task(folder: Path, max_patches: int = 0) -> Task:
    """The IDC comparison on a folder of patches, read with a progress bar.

    Raises:
        InputError: the folder holds nothing to learn from.
    """
    found = open_collection(folder, "idc")
    used = sample_patients(found, max_patches, seed=0)
    with bar(len(used), "checking patches", "patch") as progress:
        findings = check(used, on_images=progress.update)
    with tempfile.TemporaryDirectory() as place, bar(len(used), "reading", "patch") as progress:
        cache = prepare(used, Path(place) / "cache", SIZE, on_images=progress.update)
        images = dataclasses.replace(cache, images=np.array(cache.images))
    for path, reason in findings.unreadable[:NAMED_FILES]:
        print(f"skipped {folder / path}: {reason}", file=sys.stderr)
    if len(findings.unreadable) > NAMED_FILES:
        print(f"skipped {len(findings.unreadable) - NAMED_FILES:,} more", file=sys.stderr)
    return idc_task(images, _facts(found, images, findings, max_patches))


def sample_patients(found: Collection, limit: int, seed: int) -> Collection:
    """Images of whole patients, drawn in random order until `limit` images are reached.

    Raises:
        InputError: the patients that were drawn have images of one class only.
    """
    if not limit or len(found) <= limit:
        return found
    patients, which, sizes = np.unique(found.groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(patients))
    fitting = np.cumsum(sizes[order]) <= limit
    fitting[0] = True
    kept = found.take(np.flatnonzero(np.isin(which, order[fitting])))
    if 0 in kept.counts():
        raise InputError(f"{limit} patches hold one class only; give a larger --max-patches")
    return kept


def _facts(
    found: Collection, images: ImageSet, findings: Findings, max_patches: int
) -> tuple[tuple[str, str], ...]:
    negative, positive = images.counts()
    used = f"{len(images):,} patches of {len(np.unique(images.groups)):,} patients"
    unreadable = len(findings.unreadable)
    left = len(found) - len(images) - unreadable
    facts = (
        ("data", f"{found.root}"),
        ("", f"{used}: {negative:,} negative, {positive:,} positive"),
        ("", f"{len(findings.odd_sizes):,} are not 50 x 50; all are resized to 32 x 32"),
        ("", f"{unreadable:,} unreadable, skipped"),
    )
    if left:
        facts += (("", f"{left:,} left out by --max-patches {max_patches}, whole patients"),)
    return facts
