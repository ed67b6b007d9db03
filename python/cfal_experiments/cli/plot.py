"""`cfal plot features`, `classes` and `weights`: the paper's figures 3, 7 and 6b."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfal_experiments.cli import parsing

DESCRIPTIONS = {
    "plot features": "Draw the features of images in two dimensions, and the centres of the "
    "classes, where the loss of the run has centres.",
    "plot classes": "Draw how many images each class has: in the training part of a run, or in a "
    "data set.",
    "plot weights": "Draw the class-balanced weights that the betas of Table III give for the "
    "class sizes of a run's training part or of a data set.",
}


def run(name: str, arguments: Sequence[str]) -> int:
    """Parse, draw, and say where."""
    parser = parsing.parser(name, DESCRIPTIONS[name])
    figure = name.split()[1]
    if figure == "features":
        parser.add_argument("path", metavar="RUN", help="folder of a run")
        parser.add_argument("--data", metavar="PATH", help="images (default: those of the run)")
        parser.add_argument(
            "--part", choices=["test", "validation", "train", "all"], default="test"
        )
        parser.add_argument("--projection", choices=["pca", "tsne"], default="pca")
        parser.add_argument(
            "--allow-import", action="store_true", help="build a model named by import path"
        )
    else:
        parser.add_argument("path", metavar="PATH", help="folder of a run, or images")
    parser.add_argument("-o", "--output", default=f"{figure}.png", help="PNG to write")
    given = parsing.parse(parser, arguments)

    from cfal_experiments.evaluation import embedding, evaluate, figures
    from cfal_experiments.training.folder import RunFolder

    place, output = Path(given.path), Path(given.output)
    if figure == "features":
        folder = RunFolder(place)
        folder.require_begun()
        folder.read_summary()
        classifier, part = evaluate.open_part(
            folder, given.data, given.part, allow_import=given.allow_import
        )
        found = embedding.embed(classifier, part)
        names = part.images.class_names
        figures.features(*found, names, output, projection=given.projection)
    else:
        draw = figures.class_sizes if figure == "classes" else figures.class_weights
        draw(*embedding.counts_of(place), output)
    print(output)
    return 0
