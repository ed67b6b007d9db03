"""Scores against hand-computed ones; evaluate, predict and ensemble as commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

from PIL import Image  # noqa: E402

from cfal_experiments.cli import main as cli  # noqa: E402
from cfal_experiments.evaluation import metrics, predictions, unseen  # noqa: E402
from cfal_experiments.training import run  # noqa: E402
from harness import config_for, write_folder  # noqa: E402

# Without compiled kernels the reference serves, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "images", per_class=30)


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory) -> list[Path]:
    """Two runs on one split, and a third on another."""
    folders = []
    for number, (loss, split) in enumerate([("cfal", 0), ("cross-entropy", 0), ("cfal", 1)]):
        config = config_for(images, epochs=1, loss=loss)
        config.seeds.split = split
        folders.append(tmp_path_factory.mktemp("runs") / f"run{number}")
        run.train(config, folders[-1], quiet=True)
    return folders


def mistake(capsys, arguments: list[str], *words: str) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert all(word in error for word in words), error


class TestScores:
    # Class 1: two of three found, one false alarm: F1 = 2/3. Class 0: four of five: F1 = 4/5.
    target = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    posteriors = np.eye(2)[[0, 0, 0, 0, 1, 1, 1, 0]] * 0.8 + 0.1

    def test_of_a_hand_computed_case(self):
        scores = metrics.scores(self.target, self.posteriors, ("no", "yes"))
        assert scores["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
        assert scores["f1_positive"] == pytest.approx(2 / 3)
        assert scores["accuracy"] == pytest.approx(6 / 8)
        assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 4 / 5) / 2)
        # (TPR + TNR) / 2; with posteriors of two values only, ranking gives the same.
        assert scores["auroc_hard"] == pytest.approx((2 / 3 + 4 / 5) / 2)
        assert scores["auroc"] == pytest.approx(scores["auroc_hard"])
        assert scores["confusion"] == [[4, 1], [1, 2]]
        # All confidences are 0.9, of which 6 of 8 are right.
        assert scores["calibration_error"] == pytest.approx(0.9 - 6 / 8, abs=1e-6)

    def test_a_class_that_is_absent_counts_as_zero_and_has_no_auroc(self):
        scores = metrics.scores(self.target, np.pad(self.posteriors, ((0, 0), (0, 1))), "abc")
        assert scores["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 3)
        assert scores["per_class"]["c"]["auroc"] is None


class TestEvaluate:
    def test_saves_the_scores_of_the_run(self, runs, tmp_path, capsys):
        assert cli.main(["evaluate", str(runs[0]), "-o", str(tmp_path)]) == 0
        saved = json.loads((tmp_path / "scores.json").read_text())
        assert saved == json.loads((runs[0] / "summary.json").read_text())["scores"]["test"]
        assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
        assert "calibration error" in capsys.readouterr().out

    def test_predicts_again_where_the_data_is_named(self, runs, images, tmp_path):
        arguments = ["evaluate", str(runs[0]), "--data", str(images), "--allow-import"]
        assert cli.main([*arguments, "-o", str(tmp_path)]) == 0
        saved = json.loads((tmp_path / "scores.json").read_text())
        summary = json.loads((runs[0] / "summary.json").read_text())["scores"]["test"]
        assert saved["confusion"] == summary["confusion"]

    def test_other_data_needs_part_all(self, runs, tmp_path, capsys):
        other = write_folder(tmp_path / "other", per_class=4, seed=3)
        arguments = ["evaluate", str(runs[0]), "--data", str(other), "--allow-import"]
        mistake(capsys, arguments, "--part all")
        output = ["-o", str(tmp_path / "out")]
        assert cli.main([*arguments, "--part", "all", *output]) == 0
        assert json.loads((tmp_path / "out" / "scores.json").read_text())["count"] == 12

    def test_classes_that_the_model_does_not_know(self, runs, tmp_path, capsys):
        other = write_folder(tmp_path / "other", per_class=4)
        (other / "dark").rename(other / "violet")
        arguments = ["evaluate", str(runs[0]), "--data", str(other), "--allow-import"]
        mistake(capsys, [*arguments, "--part", "all"], "violet")

    def test_no_run(self, tmp_path, capsys):
        mistake(capsys, ["evaluate", str(tmp_path)], str(tmp_path), "not a run")


class TestPredict:
    def test_names_what_it_skips_and_ends_with_status_1(self, runs, images, tmp_path, capsys):
        folder = tmp_path / "new"
        folder.mkdir()
        good, bad = folder / "good.png", folder / "bad.png"
        written = predictions.load(runs[0] / "predictions.npz", "test")
        good.write_bytes((images / str(written.paths[0])).read_bytes())
        bad.write_bytes(good.read_bytes()[:40])
        arguments = ["predict", str(runs[0]), str(folder), "-o", str(tmp_path / "out.csv")]
        assert cli.main([*arguments, "--allow-import"]) == 1
        assert f"skipped {bad}" in capsys.readouterr().err
        with (tmp_path / "out.csv").open(newline="") as stream:
            [row] = csv.DictReader(stream)
        assert row["path"] == str(good)
        posterior = [float(row[name]) for name in written.class_names]
        np.testing.assert_allclose(posterior, written.probabilities[0], atol=1e-5)
        assert row["class"] == written.class_names[int(np.argmax(posterior))]

    def test_nothing_to_read(self, runs, tmp_path, capsys):
        arguments = ["predict", str(runs[0]), str(tmp_path), "-o", str(tmp_path / "out.csv")]
        mistake(capsys, [*arguments, "--allow-import"], str(tmp_path), "no images")
        assert not (tmp_path / "out.csv").exists()

    def test_a_place_that_cannot_be_written(self, runs, images, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        place = tmp_path / "file" / "out.csv"
        arguments = ["predict", str(runs[0]), str(images), "-o", str(place), "--allow-import"]
        mistake(capsys, arguments, str(tmp_path / "file"), "permissions")

    def test_webp_is_an_image_as_in_training(self, tmp_path):
        Image.new("RGB", (8, 8)).save(tmp_path / "one.webp")
        assert unseen.find(str(tmp_path)) == [tmp_path / "one.webp"]

    def test_a_damaged_model(self, tmp_path, capsys):
        (tmp_path / "model.safetensors").write_bytes(b"nothing")
        arguments = ["predict", str(tmp_path), str(tmp_path), "-o", str(tmp_path / "out.csv")]
        mistake(capsys, arguments, "model.safetensors")


class TestEnsemble:
    def test_prints_and_saves(self, runs, tmp_path, capsys):
        arguments = ["ensemble", str(runs[0]), str(runs[1]), "--strategy", "vote"]
        assert cli.main([*arguments, "-o", str(tmp_path)]) == 0
        assert "f1 macro" in capsys.readouterr().out
        assert (tmp_path / "scores.csv").is_file()

    def test_runs_on_other_images_do_not_mix(self, runs, capsys):
        mistake(capsys, ["ensemble", str(runs[0]), str(runs[2])], str(runs[2]), "--seeds.split")

    def test_one_run_is_none(self, runs, capsys):
        mistake(capsys, ["ensemble", str(runs[0])], "two or more")
