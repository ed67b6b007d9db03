"""The demo's training loop, scores, search and printout."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("jsonargparse")
pytest.importorskip("optuna")

from cfal_experiments import classifier as systems  # noqa: E402
from cfal_experiments import timing  # noqa: E402
from cfal_experiments.classifier import Classifier  # noqa: E402
from cfal_experiments.data.images import ImageSet  # noqa: E402
from cfal_experiments.data.partition import Split  # noqa: E402
from cfal_experiments.demo import report, tasks, tuning  # noqa: E402
from cfal_experiments.demo.comparison import build_system, scores  # noqa: E402
from cfal_experiments.demo.mlp import MLP  # noqa: E402
from cfal_experiments.demo.training import fit, mean_loss  # noqa: E402
from cfal_experiments.training.config import Config, SeedsConfig  # noqa: E402
from cfal_experiments.training.source import Source  # noqa: E402

# Without compiled kernels the reference serves, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning")


def toy(rows: int = 90) -> Source:
    """Three classes told apart by the brightness of a 2 x 2 image."""
    labels = np.arange(rows) % 3
    noise = np.random.default_rng(0).integers(0, 60, (rows, 2, 2, 1))
    pixels = (labels[:, None, None, None] * 80 + noise).astype(np.uint8)
    images = ImageSet(pixels, labels, ("dark", "grey", "bright"), np.arange(rows).astype(str))
    return Source(images, Split(np.arange(50), np.arange(50, 70), np.arange(70, 90)))


def toy_config(loss: str = "cfal", rate: float = 1e-3, epochs: int = 3, seed: int = 0) -> Config:
    config = Config(seeds=SeedsConfig(seed, seed, seed, seed))
    config.loss.name = loss
    config.optimizer.learning_rate = rate
    config.training.epochs, config.training.patience = epochs, 3
    return config


def toy_system(source: Source, config: Config) -> Classifier:
    torch.manual_seed(0)
    normalisation = source.normalisation("training")
    return systems.build(MLP(4, 8, 5), config.loss, [30, 15, 5], normalisation)


@pytest.mark.parametrize("loss", ["cross-entropy", "cfal"])
def test_fit_learns_and_restores_the_best_weights(loss: str):
    source, config = toy(), toy_config(loss, rate=0.05, epochs=30)
    system = toy_system(source, config)
    before = mean_loss(system, source.validation)
    seen = {}
    best = fit(system, source, config, seen.__setitem__)
    after = mean_loss(system, source.validation)
    assert after == min(seen.values()) == seen[best]
    assert after < 0.7 * before


def test_fit_stops_when_patience_is_spent():
    seen = []
    source, config = toy(), toy_config("cross-entropy", rate=0.5, epochs=200)
    best = fit(toy_system(source, config), source, config, lambda epoch, loss: seen.append(epoch))
    assert seen[-1] == best + 3 < 200


def test_fit_is_the_same_to_the_bit_for_the_same_seed():
    def weights(seed: int) -> dict[str, torch.Tensor]:
        source, config = toy(), toy_config(seed=seed)
        system = toy_system(source, config)
        fit(system, source, config)
        return system.state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_fit_never_looks_at_the_test_part():
    source, config = toy(), toy_config()
    images, test = source.images, source.split.test
    spoilt_labels, spoilt_pixels = images.labels.copy(), images.images.copy()
    spoilt_labels[test] = 12345
    spoilt_pixels[test] = 255
    spoilt = dataclasses.replace(images, labels=spoilt_labels, images=spoilt_pixels)
    states = []
    for each in (source, Source(spoilt, source.split)):
        system = toy_system(each, config)
        fit(system, each, config)
        states.append(system.state_dict())
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


def test_every_loss_starts_from_the_same_model():
    task = tasks.digits_task()
    systems = [build_system(task, recipe.config, task.split(0)) for recipe in task.recipes]
    expected = systems[0].model.state_dict()
    for system in systems[1:]:
        assert all(torch.equal(expected[key], v) for key, v in system.model.state_dict().items())


def test_scores_of_a_hand_computed_case():
    # Class 1: two of three found, one false alarm: F1 = 2/3. Class 0: four of five: F1 = 4/5.
    target = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    predicted = np.array([0, 0, 0, 0, 1, 1, 1, 0])
    result = scores(target, np.eye(2)[predicted], ("negative", "positive"), minority=[1])
    assert result == pytest.approx(
        {
            "macro F1": (2 / 3 + 4 / 5) / 2,
            "minority recall": 2 / 3,
            "accuracy": 6 / 8,
            "balanced accuracy": (2 / 3 + 4 / 5) / 2,
            "positive F1": 2 / 3,
        }
    )


def test_the_settings_of_the_digits_lie_in_the_space_that_was_searched():
    for recipe in tasks.digits_task().recipes:
        plain = recipe.config.as_dict()
        for dimension in tuning.SPACES[recipe.name]:
            section, name = dimension.field.split(".")
            value = plain[section][name]
            assert dimension.holds(value), (recipe.name, dimension.field, value)


def test_the_search_trains_different_settings_and_ranks_them(monkeypatch):
    task, calls = tasks.digits_task(), []

    def scored(task, recipe, seed, part):
        calls.append((str(recipe), seed, part))
        return {"macro F1": recipe.config.optimizer.learning_rate}

    monkeypatch.setattr(tuning, "run", scored)
    found = tuning.search(task, task.recipes[0], trials=5, seeds=2)
    assert len({settings for settings, _, _ in calls}) == 5
    # Validation parts only, and of no split that the demo reports.
    assert {(seed, part) for _, seed, part in calls} == {(1000, "validation"), (1001, "validation")}
    assert task.seeds <= tuning.FIRST_SEED
    assert [score for score, _ in found] == sorted((score for score, _ in found), reverse=True)


@pytest.mark.parametrize("name", ["digits", "idc"])
def test_losses_of_a_task_differ_in_loss_and_optimizer_only(name: str):
    task = tasks.digits_task() if name == "digits" else tasks.idc_task(toy().images)
    for recipe in task.recipes:
        for section in ("data", "training", "model", "seeds"):
            assert getattr(recipe.config, section) == getattr(task.budget, section)


def test_timed_steps_take_turns():
    calls = []
    medians = timing.interleaved_medians(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=1
    )
    assert calls == ["a", "b"] * 4
    assert medians.keys() == {"a", "b"}
    assert all(seconds >= 0 for seconds in medians.values())


def test_report_says_when_a_difference_is_not_clear():
    def result(*values: float) -> list[dict[str, float]]:
        return [{"macro F1": value} for value in values]

    table = {"a": result(0.50, 0.60), "b": result(0.60, 0.70), "c": result(0.45, 0.66)}
    assert "+10.0 points" in report.paired_difference(table, "b", "a", "macro F1")
    assert "clear" not in report.paired_difference(table, "b", "a", "macro F1")
    assert report.paired_difference(table, "c", "a", "macro F1").endswith("no clear difference")
    single = {"a": result(0.5), "b": result(0.6)}
    assert "says little" in report.paired_difference(single, "b", "a", "macro F1")
