"""The scores of a run on its own split or on other data, saved beside each other."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfal_experiments import atomic
from cfal_experiments.classifier import Classifier
from cfal_experiments.data.partition import Split
from cfal_experiments.errors import InputError
from cfal_experiments.evaluation import inference, metrics, plots, predictions, tables
from cfal_experiments.training import configuration, export, source
from cfal_experiments.training.folder import RunFolder
from cfal_experiments.training.source import Part


def evaluate(
    run: Path, data: str | None, part: str, output: Path, *, allow_import: bool = False
) -> str:
    """Score a run, write the scores into `output`, and return them as a table.

    Args:
        run: folder of a complete run.
        data: images to predict; None takes the predictions that the run saved.
        part: of the run's split, or "all" for every image of `data`.
        output: folder for scores.json, scores.csv and confusion.png.
        allow_import: build a model that the run names by import path.

    Raises:
        InputError: the run is not complete, or its classes or images are not those of the data.
    """
    folder = RunFolder(run)
    folder.require_begun()
    folder.read_summary()
    if data is None and part in ("validation", "test"):
        found = predictions.load(folder.predictions, part)
    else:
        found = inference.predict_part(*open_part(folder, data, part, allow_import=allow_import))
    scores = metrics.scores(found.labels, found.probabilities, found.class_names)
    save(scores, found.class_names, output)
    return tables.full(scores)


def save(scores: Mapping[str, Any], class_names: Sequence[str], output: Path) -> None:
    """Write scores.json, scores.csv (one row per class) and confusion.png."""
    atomic.write_text(output / "scores.json", json.dumps(scores, indent=2) + "\n")
    text = io.StringIO()
    columns = ["class", *next(iter(scores["per_class"].values()))]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"class": name, **row} for name, row in scores["per_class"].items())
    atomic.write_text(output / "scores.csv", text.getvalue())
    plots.confusion(
        np.array(scores["confusion"]),
        class_names,
        f"F1 {scores['f1_macro']:.2f}, accuracy {100 * scores['accuracy']:.1f} %",
        output / "confusion.png",
    )


def open_part(
    folder: RunFolder, data: str | None, part: str, *, allow_import: bool = False
) -> tuple[Classifier, Part]:
    """The trained system of a run, and images for it.

    Args:
        folder: of a complete run.
        data: where the images are; None for those of the run.
        part: of the run's split, or "all" for every image.
        allow_import: build a model that the run names by import path.

    Raises:
        InputError: no model, no images, or not those of the run's split.
    """
    classifier, description = export.load(folder.model, allow_import=allow_import)
    config = configuration.load(folder.config)
    if data is not None:
        config.data.path, config.data.test_path = data, None
    images = source.open_images(config.data, config.data.path, description.size)
    images = images.with_classes(description.class_names)
    if part == "all":
        return classifier, Part(images, np.arange(len(images)))
    try:
        split = Split.load(folder.split, images.paths)
    except InputError as error:
        raise InputError(f"{error}; --part all scores every image of another data set") from error
    rows = getattr(split, part)
    if not len(rows):
        raise InputError(f"{folder.path}: its split has no {part} part; use --data and --part all")
    return classifier, Part(images, rows)
