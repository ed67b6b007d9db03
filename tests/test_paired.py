"""Differences between systems: what is paired, and what the interval is over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")

from cfal_experiments.comparison import paired  # noqa: E402
from cfal_experiments.comparison.compare import Trial  # noqa: E402
from cfal_experiments.evaluation import predictions  # noqa: E402
from cfal_experiments.evaluation.metrics import macro_f1_of  # noqa: E402
from cfal_experiments.evaluation.predictions import Predictions  # noqa: E402
from cfal_experiments.training.config import DataConfig  # noqa: E402
from cfal_experiments.training.folder import RunFolder  # noqa: E402
from patches import write_idc  # noqa: E402

PATIENTS, IMAGES = 12, 10  # IMAGES of each patient
PATHS = np.array([f"{p:02}-{i}" for p in range(PATIENTS) for i in range(IMAGES)])
LABELS = np.arange(len(PATHS)) % 2
GROUPS = {path: path[:2] for path in PATHS.tolist()}


def trial(folder: Path, name: str, seed: int, decided: np.ndarray) -> Trial:
    """A run that decided so."""
    run = RunFolder(folder / name / f"seed{seed}")
    run.path.mkdir(parents=True)
    part = Predictions(PATHS, LABELS, np.eye(2, dtype=np.float32)[decided], ("a", "b"))
    predictions.save(run.predictions, {"test": part})
    return Trial(name, seed, run)


def wrong_for(patients: int) -> np.ndarray:
    """Right everywhere but for the first patients, whose images are all decided wrongly."""
    return np.where(np.arange(len(PATHS)) < patients * IMAGES, 1 - LABELS, LABELS)


def test_differences_are_those_of_the_scores(tmp_path):
    trials = [
        trial(tmp_path, name, seed, wrong_for(count))
        for name, counts in (("base", (3, 4)), ("other", (1, 3)))
        for seed, count in enumerate(counts)
    ]
    [found] = paired.differences(trials, ["base"], GROUPS)
    assert (found.system, found.baseline) == ("other", "base")
    # As many wrong of either class: every F1 is the share of right decisions.
    assert found.by_seed == pytest.approx((2 / PATIENTS, 1 / PATIENTS))
    assert found.mean == pytest.approx(1.5 / PATIENTS)


def test_the_interval_is_over_patients_not_images(tmp_path):
    """Three of twelve patients decide: their number in a draw is binomial, whatever the images."""
    trials = [trial(tmp_path, "base", 0, wrong_for(3)), trial(tmp_path, "other", 0, wrong_for(0))]
    [by_patient] = paired.differences(trials, ["base"], GROUPS)
    [by_image] = paired.differences(trials, ["base"])
    draws = np.random.default_rng(1).binomial(PATIENTS, 3 / PATIENTS, 20000) / PATIENTS
    np.testing.assert_allclose(by_patient.interval, np.percentile(draws, paired.LEVELS), atol=0.09)
    width = by_patient.interval[1] - by_patient.interval[0]
    assert width > 2 * (by_image.interval[1] - by_image.interval[0])
    assert by_patient.by_seed == by_image.by_seed == (pytest.approx(0.25),)


def test_equal_systems_differ_by_nothing(tmp_path):
    trials = [trial(tmp_path, name, 0, wrong_for(2)) for name in ("base", "other")]
    [found] = paired.differences(trials, ["base"], GROUPS)
    assert found.by_seed == (0.0,) and found.interval == (0.0, 0.0)


def test_scores_with_weights_of_one_are_the_scores(tmp_path):
    rng = np.random.default_rng(3)
    decided = {name: rng.integers(0, 2, len(PATHS)) for name in ("base", "other")}
    trials = [trial(tmp_path, name, 0, each) for name, each in decided.items()]
    [found] = paired.differences(trials, ["base"], GROUPS)
    scores = []
    for each in decided.values():
        counts = np.zeros((2, 2))
        np.add.at(counts, (LABELS, each), 1)
        scores.append(macro_f1_of(counts))
    assert found.by_seed[0] == pytest.approx(scores[1] - scores[0])


def test_patients_of_a_folder(tmp_path):
    found = paired.patients_of(DataConfig(path=str(write_idc(tmp_path / "idc"))))
    assert set(found.values()) == {"10", "11", "12", "13"}
    assert all(path.startswith(patient) for path, patient in found.items())


def test_the_table(tmp_path):
    found = [paired.Difference("other", "base", (0.01, -0.02), (-0.031, 0.0214))]
    assert paired.as_markdown(found, [0, 1]).splitlines()[-1] == (
        "| other | base | +1.0 | -2.0 | -0.5 | -3.1 to +2.1 |"
    )
