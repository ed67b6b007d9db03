"""The demo's training loop, scores, search and printout."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

from cfal_experiments import losses, timing  # noqa: E402
from cfal_experiments.demo import report, tasks, tuning  # noqa: E402
from cfal_experiments.demo.batches import Normalisation  # noqa: E402
from cfal_experiments.demo.comparison import build_system  # noqa: E402
from cfal_experiments.demo.mlp import MLP  # noqa: E402
from cfal_experiments.demo.samples import Samples, Split  # noqa: E402
from cfal_experiments.demo.scores import scores  # noqa: E402
from cfal_experiments.demo.training import Budget, Recipe, System, fit, mean_loss  # noqa: E402

# Without compiled kernels the reference serves, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning")


def toy(rows: int = 90) -> Samples:
    """Three classes told apart by the brightness of a 2 x 2 image."""
    labels = torch.arange(rows) % 3
    noise = torch.randint(0, 60, (rows, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    images = (labels[:, None, None, None] * 80 + noise).to(torch.uint8)
    return Samples(images, labels, ("dark", "grey", "bright"))


def toy_split() -> Split:
    return Split(np.arange(50), np.arange(50, 70), np.arange(70, 90))


def toy_system(loss: str = "cfal", seed: int = 0) -> System:
    torch.manual_seed(seed)
    return System(MLP(4, 8, 5), losses.build(loss, 3, 5, [30, 15, 5]))


@pytest.mark.parametrize("loss", ["cross-entropy", "cfal"])
def test_fit_learns_and_restores_the_best_weights(loss: str):
    samples, split, system = toy(), toy_split(), toy_system(loss)
    normalise = Normalisation.of(samples, split.train)
    before = mean_loss(system, samples, split.validation, normalise)
    seen = {}
    best = fit(system, samples, split, Recipe(loss, {}, 0.05), Budget(30, 5), 0, seen.__setitem__)
    after = mean_loss(system, samples, split.validation, normalise)
    assert after == min(seen.values()) == seen[best]
    assert after < 0.7 * before


def test_fit_stops_when_patience_is_spent():
    seen = []
    budget = Budget(epochs=200, patience=3)
    best = fit(
        toy_system("cross-entropy"),
        toy(),
        toy_split(),
        Recipe("cross-entropy", {}, 0.5),
        budget,
        0,
        lambda epoch, loss: seen.append(epoch),
    )
    assert seen[-1] == best + 3 < 200


def test_fit_is_the_same_to_the_bit_for_the_same_seed():
    def weights(seed: int) -> dict[str, torch.Tensor]:
        system = toy_system()
        fit(system, toy(), toy_split(), Recipe("cfal", {}), Budget(3, 3, flips=True), seed)
        return system.state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_fit_never_looks_at_the_test_part():
    samples, split = toy(), toy_split()
    spoilt_labels, spoilt_images = samples.labels.clone(), samples.images.clone()
    spoilt_labels[split.test] = 12345
    spoilt_images[split.test] = 255
    spoilt = dataclasses.replace(samples, labels=spoilt_labels, images=spoilt_images)
    clean_system, spoilt_system = toy_system(), toy_system()
    for system, data in ((clean_system, samples), (spoilt_system, spoilt)):
        fit(system, data, split, Recipe("cfal", {}), Budget(3, 3), 0)
    expected = clean_system.state_dict()
    assert all(
        torch.equal(expected[key], value) for key, value in spoilt_system.state_dict().items()
    )


def test_every_loss_starts_from_the_same_model():
    task = tasks.digits_task()
    systems = [build_system(task, recipe, [9] * 10, seed=4) for recipe in task.recipes]
    expected = systems[0].model.state_dict()
    for system in systems[1:]:
        assert all(torch.equal(expected[key], v) for key, v in system.model.state_dict().items())


def test_scores_of_a_hand_computed_case():
    # Class 1: two of three found, one false alarm: F1 = 2/3. Class 0: four of five: F1 = 4/5.
    target = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    predicted = np.array([0, 0, 0, 0, 1, 1, 1, 0])
    result = scores(target, np.eye(2)[predicted], minority=[1])
    assert result == pytest.approx(
        {
            "macro F1": (2 / 3 + 4 / 5) / 2,
            "minority recall": 2 / 3,
            "accuracy": 6 / 8,
            "balanced accuracy": (2 / 3 + 4 / 5) / 2,
            "positive F1": 2 / 3,
        }
    )


def test_a_class_that_is_never_predicted_counts_as_zero():
    target = np.array([0, 0, 1, 2])
    result = scores(target, np.eye(3)[[0, 0, 0, 0]], minority=[1, 2])
    assert result["minority recall"] == 0
    assert result["macro F1"] == pytest.approx((4 / 6) / 3)


def test_search_gives_every_loss_as_many_distinct_trials():
    for loss in tuning.OPTIONS:
        chosen = tuning.trials("digits", loss, 16)
        assert len({str(trial) for trial in chosen}) == 16
        assert chosen == tuning.trials("digits", loss, 16)


@pytest.mark.parametrize("name", ["digits", "idc"])
def test_the_settings_of_the_demo_come_out_of_the_search(name: str):
    samples = Samples(torch.zeros(1, 3, 32, 32), torch.zeros(1).long(), ("a", "b"))
    task, count = (tasks.digits_task(), 16) if name == "digits" else (tasks.idc_task(samples), 8)
    for recipe in task.recipes:
        tried = tuning.trials(name, recipe.loss, count)
        defaults = {"detach_focal": False} if recipe.loss == "cfal" else {}
        full = dataclasses.replace(recipe, options={**defaults, **recipe.options})
        assert full in tried


def test_search_never_sees_the_seeds_of_the_demo():
    assert tasks.digits_task().seeds <= tuning.FIRST_SEED


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
    assert report.mean_and_sd([0.5, 0.6]) == "55.0 (7.1)"


def test_budget_is_untouched_by_recipes():
    # The comparison is fair by construction: nothing of the budget can be set per loss.
    names = {field.name for field in dataclasses.fields(Recipe)}
    assert not names & {field.name for field in dataclasses.fields(Budget)}


def test_system_state_holds_model_and_head():
    system = toy_system()
    other = copy.deepcopy(system)
    with torch.no_grad():
        other.loss.head.prototypes.add_(1)
    other.load_state_dict(system.state_dict())
    images = torch.randn(3, 1, 2, 2)
    assert torch.equal(system.predict_proba(images), other.predict_proba(images))
