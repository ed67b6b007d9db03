"""The search of settings: blind to test images, the same after an interruption, then a preset."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("optuna")

from PIL import Image  # noqa: E402

from cfal_experiments.cli import main as cli  # noqa: E402
from cfal_experiments.training import configuration, history  # noqa: E402
from cfal_experiments.training.config import Config  # noqa: E402
from cfal_experiments.tuning import report, search, space  # noqa: E402
from harness import config_for, write_folder  # noqa: E402

# Without compiled kernels the reference serves, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning")

SPACE = (space.parse("loss.sigma=10,100,auto"), space.parse("optimizer.learning_rate=1e-4..1e-2"))


def run(config: Config, output: Path, trials: int = 3, repeats: int = 1) -> list[search.Trial]:
    plan = search.Plan(config, SPACE, repeats)
    images = search.prepare(plan)
    report.begin(plan, output)
    return search.search(
        plan, images, trials, output, lambda found: report.save(plan, found, output, "cfal tune")
    )


def table(output: Path) -> list[dict[str, str]]:
    with (output / "trials.csv").open(newline="") as stream:
        return [{**row, "seconds": ""} for row in csv.DictReader(stream)]


class TestTestImages:
    def test_their_pixels_change_nothing(self, tmp_path: Path):
        """The same search twice, the test images noise in the second: not a digit may differ."""
        folder = write_folder(tmp_path / "images", per_class=30)
        config = config_for(folder, epochs=2)
        run(config, tmp_path / "first")
        split = tmp_path / "first" / "trial-000" / "repeat-0" / "split.csv"
        parts = dict(line.rsplit(",", 1) for line in split.read_text().splitlines())
        tested = [path for path, part in parts.items() if part == "test"]
        assert len(tested) == 27
        for path in tested:
            noise = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / path)
        config.data.cache_folder = str(tmp_path / "other-cache")
        run(config, tmp_path / "second")
        assert table(tmp_path / "first") == table(tmp_path / "second")
        preset, other = (
            configuration.load(tmp_path / name / "best.yaml") for name in ("first", "second")
        )
        assert preset == other

    def test_none_is_predicted(self, tmp_path: Path):
        config = config_for(write_folder(tmp_path / "images", per_class=20), epochs=1)
        [trial] = run(config, tmp_path / "search", trials=1)
        with np.load(trial.folders[0].predictions) as arrays:
            assert not [name for name in arrays if name.startswith("test")]
        assert list(trial.folders[0].read_summary()["scores"]) == ["validation"]

    def test_a_test_set_that_lies_elsewhere_is_not_opened(self, tmp_path: Path):
        config = config_for(write_folder(tmp_path / "images", per_class=20), epochs=1)
        config.data.test_path = str(tmp_path / "nowhere")
        assert len(run(config, tmp_path / "search", trials=1)) == 1


class TestSearch:
    def test_an_interrupted_search_goes_on_to_the_same_table(self, tmp_path: Path, monkeypatch):
        config = config_for(write_folder(tmp_path / "images", per_class=20), epochs=2)
        run(config, tmp_path / "whole", repeats=2)
        write, calls = history.History.write, []

        def interrupted(self: history.History) -> None:
            calls.append(self.file)
            if len(calls) == 6:  # the second trial, its first run, its second epoch
                raise KeyboardInterrupt
            write(self)

        with monkeypatch.context() as patch:
            patch.setattr(history.History, "write", interrupted)
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                run(config, tmp_path / "broken", repeats=2)
        assert "trial-001" in str(calls[-1])
        run(config, tmp_path / "broken", repeats=2)
        assert table(tmp_path / "broken") == table(tmp_path / "whole")
        run(config, tmp_path / "broken", trials=4, repeats=2)
        assert len(table(tmp_path / "broken")) == 4 * 2

    def test_a_loss_that_is_never_finite_is_the_worst_trial(self, tmp_path: Path):
        config = config_for(write_folder(tmp_path / "images", per_class=20), epochs=1)
        config.loss.sigma = 100.0
        plan = search.Plan(config, (space.parse("optimizer.learning_rate=1e-3,1e30"),))
        images = search.prepare(plan)
        trials = search.search(plan, images, 5, tmp_path / "search")
        assert [trial.values["optimizer.learning_rate"] for trial in trials] == [1e-3, 1e30]
        assert trials[1].score == 0 and trials[1].summaries == (None,)
        assert search.best(trials) is trials[0]
        # Again: nothing is trained, and the failure is known as one.
        assert search.search(plan, images, 5, tmp_path / "search")[1].summaries == (None,)

    def test_the_configurations_own_point_comes_first_and_no_point_twice(self, tmp_path: Path):
        config = config_for(write_folder(tmp_path / "images", per_class=20), epochs=1)
        plan = search.Plan(
            config, (space.parse("loss.sigma=80,130"), space.parse("loss.gamma=1,2"))
        )
        trials = search.search(plan, search.prepare(plan), 9, tmp_path / "search")
        assert trials[0].values == {"loss.sigma": 130.0, "loss.gamma": 2.0}  # the loss's defaults
        points = {tuple(trial.values.values()) for trial in trials}
        assert points == {(80, 1), (80, 2), (130, 1), (130, 2)}
        assert len(trials) == 4


class TestSpace:
    @pytest.mark.parametrize(("loss", "points"), [("cfal", 1440), ("arcface", 175), ("focal", 20)])
    def test_the_papers_has_the_size_of_table_iii(self, loss: str, points: int):
        dimensions = space.named("paper", loss)
        space.check(dimensions, configuration.load(f"idc_{loss}"))
        assert space.size(dimensions) == points

    def test_a_file_holds_lists_and_ranges(self, tmp_path: Path):
        file = tmp_path / "space.yaml"
        file.write_text("loss.sigma: [80, auto]\noptimizer.learning_rate: 1e-4..1e-2\n")
        sigma, rate = space.named(str(file), "cfal")
        assert sigma.choices == (80, "auto") and (rate.low, rate.high) == (1e-4, 1e-2)
        assert space.size([sigma, rate]) is None

    def test_a_later_dimension_replaces_an_earlier_one(self):
        merged = space.merge([*space.named("paper", "cfal"), space.parse("loss.sigma=32")])
        assert [each.choices for each in merged if each.field == "loss.sigma"] == [(32,)]


def arguments(folder: Path, config: Path, output: Path, *more: str) -> list[str]:
    return ["tune", "--config", str(config), "--data", str(folder), "-o", str(output), *more]


class TestCommand:
    def test_its_result_is_a_preset_that_train_takes(self, tmp_path: Path, capsys):
        folder = write_folder(tmp_path / "images", per_class=20)
        configuration.save(config_for(folder, epochs=1), tmp_path / "mine.yaml")
        given = arguments(folder, tmp_path / "mine.yaml", tmp_path / "out", "--trials", "2")
        assert cli.main([*given, "--vary", "loss.sigma=10,auto"]) == 0
        assert "best: trial" in capsys.readouterr().out
        preset = tmp_path / "out" / "best.yaml"
        text = preset.read_text()
        assert (
            "best of 2 trials" in text
            and str(tmp_path / "images") not in text.partition("data:")[2]
        )
        cache = ["--data.cache_folder", str(tmp_path / "cache")]
        train = ["train", "--config", str(preset), "--data", str(folder), "--quiet", *cache]
        assert cli.main([*train, "-o", str(tmp_path / "run")]) == 0
        assert cli.main([*given, "--vary", "loss.sigma=10,20"]) == 2
        assert "other settings" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--vary", "loss.sigmo=1,2"], ["sigmo"]),
            (["--vary", "loss.sigma=1,wide"], ["loss.sigma", "wide"]),
            (["--vary", "loss.sigma=3..1"], ["loss.sigma", "LOW..HIGH"]),
            (["--vary", "loss.sigma"], ["FIELD=VALUE"]),
            (["--vary", "loss.scale=1,2"], ["cfal", "scale"]),
            (["--vary", "seeds.split=1,2"], ["seeds.split"]),
            (["--space", "nowhere"], ["nowhere", "paper"]),
            (["--trials", "0"], ["--trials"]),
            (["--loss.name", "cross-entropy"], ["cross-entropy", "--vary"]),
        ],
    )
    def test_a_mistake_is_one_line_and_leaves_nothing(self, tmp_path, capsys, more, words):
        folder = write_folder(tmp_path / "images", per_class=4)
        configuration.save(config_for(folder), tmp_path / "mine.yaml")
        assert cli.main(arguments(folder, tmp_path / "mine.yaml", tmp_path / "out", *more)) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1
        assert all(word in error for word in words), error
        assert not (tmp_path / "out").exists()
