"""Figures of runs and data sets: what is drawn agrees with what the system predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("matplotlib")
pytest.importorskip("optuna")

from PIL import Image  # noqa: E402

from cfal_experiments.cli import main as cli  # noqa: E402
from cfal_experiments.evaluation import embedding, evaluate, inference  # noqa: E402
from cfal_experiments.training import run  # noqa: E402
from cfal_experiments.training.folder import RunFolder  # noqa: E402
from harness import CLASSES, config_for, write_folder  # noqa: E402

# Without compiled kernels the reference serves, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "images", per_class=20)


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for loss in ("cfal", "arcface", "cross-entropy"):
        folders[loss] = tmp_path_factory.mktemp("runs") / loss
        run.train(config_for(images, epochs=1, loss=loss), folders[loss], quiet=True)
    return folders


@pytest.mark.parametrize("loss", ["cfal", "arcface"])
def test_the_nearest_centre_is_the_class_that_is_predicted(runs, loss: str):
    classifier, part = evaluate.open_part(RunFolder(runs[loss]), None, "all", allow_import=True)
    features, labels, centres = embedding.embed(classifier, part)
    assert features.shape == (60, 6) and centres.shape == (3, 1, 6)
    distances = np.linalg.norm(features[:, None] - centres[None, :, 0], axis=2)
    found = inference.predict_part(classifier, part)
    np.testing.assert_array_equal(distances.argmin(1), found.probabilities.argmax(1))
    np.testing.assert_array_equal(labels, found.labels)
    if loss == "arcface":
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_a_linear_layer_has_no_centres(runs):
    folder = RunFolder(runs["cross-entropy"])
    _, _, centres = embedding.embed(*evaluate.open_part(folder, None, "test", allow_import=True))
    assert centres.shape == (3, 0, 6)


def test_class_sizes_are_those_of_the_training_part_or_of_all(runs, images):
    counts, names = embedding.counts_of(runs["cfal"])
    lines = (runs["cfal"] / "split.csv").read_text().splitlines()
    assert sum(counts) == sum(line.endswith(",train") for line in lines) < 60
    assert embedding.counts_of(images) == ([20, 20, 20], tuple(sorted(CLASSES)))
    assert names == tuple(sorted(CLASSES))


@pytest.mark.parametrize("projection", ["pca", "tsne"])
@pytest.mark.parametrize("loss", ["cfal", "cross-entropy"])
def test_features_become_a_picture(runs, tmp_path, loss: str, projection: str):
    arguments = ["plot", "features", str(runs[loss]), "--projection", projection]
    assert cli.main([*arguments, "--allow-import", "-o", str(tmp_path / "out.png")]) == 0
    assert_picture(tmp_path / "out.png")


@pytest.mark.parametrize("figure", ["classes", "weights"])
def test_counts_become_a_picture(images, tmp_path, figure: str):
    assert cli.main(["plot", figure, str(images), "-o", str(tmp_path / "out.png")]) == 0
    assert_picture(tmp_path / "out.png")


def assert_picture(file: Path) -> None:
    """Something is drawn: an empty sheet has one colour."""
    with Image.open(file) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert len(colours) > 10
