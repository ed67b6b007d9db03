"""CCT and VGG19 on real images, from training to predictions; no claims about the scores."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("safetensors")

from PIL import Image  # noqa: E402

from cfal_experiments.cli import main as cli  # noqa: E402
from patches import SHARED, needs_shared_data  # noqa: E402

PATHMNIST = SHARED / "data" / "pathmnist_718" / "pathmnist_test718.npz"
TILES = SHARED / "data" / "nct_crc_tiles"
TISSUES = ["ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"]

pytestmark = [
    needs_shared_data,
    pytest.mark.slow,
    # A few dozen images: no class-balanced weight differs from 1. Without compiled kernels the
    # reference serves, and says so.
    pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning"),
]


def train(tmp_path: Path, preset: str, data: Path, size: int, *more: str) -> Path:
    """One epoch of a preset at a reduced size."""
    run = tmp_path / "run"
    arguments = ["train", "--config", preset, "--data", str(data), "-o", str(run), "--quiet"]
    arguments += ["--data.size", str(size), "--model.input_size", str(size)]
    arguments += ["--data.cache_folder", str(tmp_path / "cache"), "--training.epochs", "1"]
    arguments += ["--training.threads", "1", "--training.accelerator", "cpu", *more]
    assert cli.main(arguments) == 0
    return run


def scores_of(run: Path, images: int, classes: int) -> dict:
    """`cfal evaluate` on the test part; what it writes."""
    assert cli.main(["evaluate", str(run)]) == 0
    with Image.open(run / "evaluation" / "confusion.png") as plot:
        assert min(plot.size) > 200
    scores = json.loads((run / "evaluation" / "scores.json").read_text())
    assert scores["count"] == np.sum(scores["confusion"]) == images
    assert len(scores["per_class"]) == classes
    return scores


def predictions_of(run: Path, images: Path, output: Path) -> list[dict[str, str]]:
    """`cfal predict` on a folder; the rows of its table."""
    assert cli.main(["predict", str(run), str(images), "-o", str(output)]) == 0
    with output.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_cct_on_pathmnist(tmp_path: Path):
    run = train(tmp_path, "cct_cfal", PATHMNIST, 32)
    scores = scores_of(run, images=216, classes=9)
    assert list(scores["per_class"]) == TISSUES
    rows = predictions_of(run, TILES, tmp_path / "tiles.csv")
    assert len(rows) == len(list(TILES.glob("*__*")))
    for row in rows:
        posterior = [float(row[name]) for name in TISSUES]
        assert sum(posterior) == pytest.approx(1, abs=1e-4)
        assert row["class"] == TISSUES[int(np.argmax(posterior))]


def test_vgg19_on_full_size_tiles(tmp_path: Path):
    """The classes with three tiles or more, by a manifest, from random weights."""
    by_class: dict[str, list[Path]] = {}
    for path in sorted(TILES.glob("*__*")):
        by_class.setdefault(path.name.partition("__")[2].partition("-")[0], []).append(path)
    kept = {name: paths for name, paths in by_class.items() if len(paths) >= 3}
    manifest = tmp_path / "tiles.csv"
    lines = [f"{path},{name}\n" for name, paths in kept.items() for path in paths]
    manifest.write_text("path,label\n" + "".join(lines))
    assert cli.main(["data", "check", str(manifest)]) in (0, 1)
    options = ["--model.weights", "null", "--training.gradient_clip", "1"]
    run = train(tmp_path, "crc_cfal", manifest, 64, *options)
    scores_of(
        run, images=sum(round(0.3 * len(paths)) for paths in kept.values()), classes=len(kept)
    )
    rows = predictions_of(run, TILES, tmp_path / "predicted.csv")
    assert {row["class"] for row in rows} <= set(kept)
