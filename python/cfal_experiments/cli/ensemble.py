"""`cfal ensemble`: the predictions of several runs as one."""

from __future__ import annotations

from collections.abc import Sequence

from cfal_experiments.cli import parsing

DESCRIPTION = """\
Combine the saved predictions of runs that share classes and test images, and print the scores.
Votes that tie go to the highest mean posterior."""


def run(name: str, arguments: Sequence[str]) -> int:
    """Parse, combine, print; save where -o names a folder."""
    parser = parsing.parser(name, DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of two or more runs")
    parser.add_argument("--strategy", choices=["average", "max", "vote"], default="average")
    parser.add_argument("--part", choices=["test", "validation"], default="test")
    parser.add_argument("-o", "--output", help="folder for scores.json, scores.csv, confusion.png")
    given = parsing.parse(parser, arguments)

    from pathlib import Path

    from cfal_experiments.evaluation import ensemble, evaluate, metrics, tables

    found = ensemble.join([Path(each) for each in given.runs], given.part, given.strategy)
    scores = metrics.scores(found.labels, found.probabilities, found.class_names)
    if given.output:
        evaluate.save(scores, found.class_names, Path(given.output))
    print(tables.full(scores))
    return 0
