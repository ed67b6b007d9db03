"""Plain text tables of a comparison."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence

from cfal_experiments.comparison.report import spread
from cfal_experiments.evaluation import tables

Scores = Mapping[str, Sequence[Mapping[str, float]]]  # loss -> one dict of scores per seed


def indented(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, two spaces to the right."""
    return textwrap.indent(tables.table(header, rows), "  ")


def score_table(scores: Scores, columns: Sequence[str]) -> str:
    """One row per loss, one column per score."""
    rows = [
        [loss, *(spread([seed[column] for seed in results]) for column in columns)]
        for loss, results in scores.items()
    ]
    return indented(["loss", *columns], rows)


def paired_difference(scores: Scores, loss: str, other: str, score: str) -> str:
    """One sentence on how `loss` compares with `other` on the same seeds."""
    differences = [
        100 * (mine[score] - theirs[score])
        for mine, theirs in zip(scores[loss], scores[other], strict=True)
    ]
    mean = statistics.mean(differences)
    wins = sum(difference > 0 for difference in differences)
    text = f"{loss} minus {other}: {mean:+.1f} points of {score}"
    if len(differences) < 2:
        return f"{text} on one seed, which says little"
    sd = statistics.stdev(differences)
    text = f"{text} (SD {sd:.1f}), higher on {wins} of {len(differences)} seeds"
    # Two standard errors of the paired mean: a reading aid, not a test.
    if abs(mean) <= 2 * sd / len(differences) ** 0.5:
        return f"{text}: no clear difference"
    return text


def comparison(scores: Scores, columns: Sequence[str], minority_text: str) -> str:
    """The table of scores and how the last loss compares with each of the others."""
    *others, loss = scores
    count = len(scores[loss])
    spread = f"mean (SD) over {count} seeds" if count > 1 else "one seed"
    differences = [paired_difference(scores, loss, other, "macro F1") for other in others]
    return "\n".join(
        [
            f"Test scores in %, {spread}",
            "",
            score_table(scores, columns),
            "",
            f"  minority recall: {minority_text}",
            *(f"  {line}" for line in differences),
        ]
    )


def duration(seconds: float) -> str:
    """Seconds as ms or us with three figures."""
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"
