"""`cfal evaluate`: every score of a trained system, as a table, JSON, CSV and a plot."""

from __future__ import annotations

from collections.abc import Sequence

from cfal_experiments.cli import parsing

DESCRIPTION = """\
Score a run on a part of its own split, or on every image of another data set. Prints the scores and
writes scores.json, scores.csv and confusion.png."""


def run(name: str, arguments: Sequence[str]) -> int:
    """Parse, predict where needed, print and save."""
    parser = parsing.parser(name, DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--data", metavar="PATH", help="images (default: the run's predictions)")
    parser.add_argument(
        "--part",
        choices=["test", "validation", "train", "all"],
        default="test",
        help="of the run's split; `all` for another data set",
    )
    parser.add_argument("-o", "--output", help="folder (default: RUN/evaluation)")
    parser.add_argument(
        "--allow-import", action="store_true", help="build a model named by import path"
    )
    given = parsing.parse(parser, arguments)

    from pathlib import Path

    from cfal_experiments.evaluation import evaluate

    output = Path(given.output) if given.output else Path(given.run) / "evaluation"
    print(
        evaluate.evaluate(
            Path(given.run), given.data, given.part, output, allow_import=given.allow_import
        )
    )
    return 0
