"""Runs of the harness: what a folder holds, what bad input says, and what a comparison writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("safetensors")

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from cfal_experiments.classifier import build_model  # noqa: E402
from cfal_experiments.cli import main as cli  # noqa: E402
from cfal_experiments.comparison import report  # noqa: E402
from cfal_experiments.errors import InputError  # noqa: E402
from cfal_experiments.evaluation import predictions  # noqa: E402
from cfal_experiments.evaluation.combining import combine  # noqa: E402
from cfal_experiments.training import checkpoints, configuration, export, run  # noqa: E402
from harness import CLASSES, config_for, write_folder  # noqa: E402

# Without compiled kernels the reference serves, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def outcome(images: Path, tmp_path_factory) -> run.Outcome:
    config = config_for(images, epochs=6, sigma="auto", init="class-means")
    return run.train(config, tmp_path_factory.mktemp("runs") / "run", quiet=True)


class TestRunFolder:
    def test_holds_everything(self, outcome):
        folder = outcome.folder
        assert {path.name for path in folder.path.iterdir()} >= {
            "config.yaml", "environment.json", "split.csv", "metrics.csv", "predictions.npz",
            "checkpoints", "model.safetensors", "summary.json", "first_batch.json", "tensorboard",
        }  # fmt: skip
        assert configuration.load(folder.config).loss.name == "cfal"
        assert "torch" in json.loads(folder.environment.read_text())["packages"]

    def test_metrics_have_one_row_per_epoch(self, outcome):
        with outcome.folder.metrics.open(newline="") as stream:
            assert [row["epoch"] for row in csv.DictReader(stream)] == list("123456")

    def test_learns_more_than_chance(self, outcome):
        assert outcome.scores["test"]["accuracy"] > 0.5  # three classes of equal size

    def test_the_exported_model_predicts_what_the_run_wrote(self, outcome, images):
        folder = outcome.folder
        classifier, description = export.load(folder.model, allow_import=True)
        assert description.class_names == tuple(sorted(CLASSES))
        written = predictions.load(folder.predictions, "test")
        pixels = [np.asarray(Image.open(images / path)) for path in written.paths]
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        assert np.allclose(classifier.predict_proba(batch), written.probabilities, atol=1e-5)

    def test_a_model_of_foreign_code_has_to_be_allowed(self, outcome):
        with pytest.raises(InputError, match="--allow-import"):
            export.load(outcome.folder.model)

    def test_the_best_weights_are_exported(self, outcome):
        best = checkpoints.read(outcome.folder.checkpoints / "best.ckpt")["state_dict"]
        classifier, _ = export.load(outcome.folder.model, allow_import=True)
        exported = classifier.state_dict()
        assert all(torch.equal(best[f"classifier.{name}"], exported[name]) for name in exported)

    def test_a_complete_run_is_left_alone(self, outcome):
        before = outcome.folder.model.stat().st_mtime_ns
        assert run.resume(outcome.folder.path, quiet=True).scores == outcome.scores
        assert outcome.folder.model.stat().st_mtime_ns == before

    def test_a_used_folder_is_refused(self, outcome, images):
        with pytest.raises(InputError, match="--resume"):
            run.train(config_for(images), outcome.folder.path, quiet=True)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_bounds_the_step_in_every_precision(images, tmp_path, precision):
    """SGD at rate 1 with the gradient clipped to 1e-4: no weight can have moved further."""
    config = config_for(images, epochs=1, sigma=100.0)
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 1.0
    config.optimizer.momentum = config.optimizer.weight_decay = 0.0
    config.training.precision, config.training.gradient_clip = precision, 1e-4
    done = run.train(config, tmp_path / "run", quiet=True)
    trained, _ = export.load(done.folder.model, allow_import=True)
    start = build_model(config.model, config.seeds.init).state_dict()
    moved = sum(
        (trained.model.state_dict()[name] - value).square().sum() for name, value in start.items()
    )
    steps = checkpoints.read(done.folder.checkpoints / "last.ckpt")["global_step"]
    assert 0 < moved.sqrt() <= 1e-4 * steps * 1.01


class TestBadInput:
    def train(self, folder: Path, tmp_path: Path) -> None:
        run.train(config_for(folder), tmp_path / "run", quiet=True)

    def test_an_empty_folder(self, tmp_path):
        (tmp_path / "images").mkdir()
        with pytest.raises(InputError, match="images"):
            self.train(tmp_path / "images", tmp_path)

    def test_one_class_only(self, tmp_path):
        folder = write_folder(tmp_path / "images", per_class=3)
        for name in CLASSES[1:]:
            for path in (folder / name).iterdir():
                path.unlink()
            (folder / name).rmdir()
        with pytest.raises(InputError, match="class"):
            self.train(folder, tmp_path)

    def test_a_class_of_one_image(self, tmp_path):
        folder = write_folder(tmp_path / "images", per_class=20)
        for path in sorted((folder / CLASSES[0]).iterdir())[1:]:
            path.unlink()
        with pytest.raises(InputError, match=CLASSES[0]):
            self.train(folder, tmp_path)

    def test_a_truncated_image_is_left_out_and_the_rest_trains(self, tmp_path):
        folder = write_folder(tmp_path / "images", per_class=30)
        bad = folder / CLASSES[0] / f"{CLASSES[0]}000.png"
        bad.write_bytes(bad.read_bytes()[:40])
        config = config_for(folder, epochs=1)
        done = run.train(config, tmp_path / "run", quiet=True)
        assert done.epochs == 1
        assert bad.name not in done.folder.split.read_text()

    def test_a_manifest_with_a_wrong_column(self, tmp_path):
        (tmp_path / "list.csv").write_text("file,class\na.png,1\n")
        with pytest.raises(InputError, match="path"):
            self.train(tmp_path / "list.csv", tmp_path)

    def test_a_full_disk_leaves_the_previous_checkpoint(self, tmp_path, monkeypatch):
        io, path = checkpoints.AtomicCheckpointIO(), tmp_path / "last.ckpt"
        io.save_checkpoint({"epoch": 1}, str(path))

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(InputError, match="disk is full"):
            io.save_checkpoint({"epoch": 2}, str(path))
        assert checkpoints.read(path) == {"epoch": 1}
        assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]

    def test_a_write_that_the_system_cuts_off_leaves_the_previous_checkpoint(self, tmp_path):
        """The system's own error, through torch's writer: files end at 64 KiB here."""
        resource = pytest.importorskip("resource")
        io, path = checkpoints.AtomicCheckpointIO(), tmp_path / "last.ckpt"
        io.save_checkpoint({"epoch": 1}, str(path))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        try:
            with pytest.raises(InputError, match="disk is full"):
                io.save_checkpoint({"weights": torch.zeros(2**18)}, str(path))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert checkpoints.read(path) == {"epoch": 1}
        assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]

    def test_a_gpu_that_is_not_there_leaves_nothing(self, images, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
        config = config_for(images)
        config.training.accelerator = "gpu"
        with pytest.raises(InputError, match="training.accelerator cpu"):
            run.train(config, tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()

    def test_a_damaged_checkpoint_is_named(self, tmp_path):
        (tmp_path / "last.ckpt").write_bytes(b"nothing")
        with pytest.raises(InputError, match=r"last\.ckpt"):
            checkpoints.read(tmp_path / "last.ckpt")


class TestCompare:
    def test_writes_a_table_and_continues(self, images, tmp_path, capsys):
        for name in ("one", "two"):
            config = config_for(images, epochs=1, loss="cfal" if name == "one" else "cross-entropy")
            configuration.save(config, tmp_path / f"{name}.yaml")
        arguments = ["compare", "--configs", str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]
        arguments += ["--ensemble", "one", "two", "--seeds", "0", "1", "--data", str(images)]
        arguments += ["--baseline", "two", "-o", str(tmp_path / "out")]
        assert cli.main(arguments) == 0
        with (tmp_path / "out" / "results.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == 2 * 2 + 2 * 3
        model = tmp_path / "out" / "one" / "seed1" / "model.safetensors"
        before = model.stat().st_mtime_ns
        assert cli.main(arguments) == 0
        assert model.stat().st_mtime_ns == before
        printed = capsys.readouterr().out
        assert "| ensemble, vote |" in printed
        assert "| one | two |" in printed and "| two | two |" not in printed

    def test_one_split_for_all_seeds(self, images, tmp_path):
        configuration.save(config_for(images, epochs=1), tmp_path / "one.yaml")
        arguments = ["compare", "--configs", str(tmp_path / "one.yaml"), "--data", str(images)]
        out = tmp_path / "out"
        assert cli.main([*arguments, "--seeds", "0", "1", "--split-seed", "7", "-o", str(out)]) == 0
        runs = [out / "one" / f"seed{seed}" for seed in (0, 1)]
        first, second = ((each / "split.csv").read_text() for each in runs)
        assert first == second
        weights = [(each / "model.safetensors").read_bytes() for each in runs]
        assert weights[0] != weights[1]

    def test_mean_and_deviation(self):
        assert report.spread([0.8, 0.9]) == "85.0 (7.1)"
        assert report.spread([0.5]) == "50.0"


class TestCombine:
    votes = [np.array([row]) for row in ([0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.0, 0.05, 0.95])]

    @pytest.mark.parametrize(("strategy", "winner"), [("average", 2), ("max", 2), ("vote", 0)])
    def test_each_strategy_decides_as_it_says(self, strategy, winner):
        combined = combine(self.votes, strategy)
        assert combined.argmax() == winner
        assert combined.sum() == pytest.approx(1.0)

    def test_a_tie_goes_to_the_highest_mean_posterior(self):
        combined = combine([np.array([[0.6, 0.4]]), np.array([[0.1, 0.9]])], "vote")
        assert combined.argmax() == 1

    def test_an_unknown_strategy(self):
        with pytest.raises(ValueError, match="average, max, vote"):
            combine(self.votes, "median")
