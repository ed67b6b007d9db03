"""Plain-text tables of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cfal_experiments.evaluation.metrics import HEADLINES


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their content, the first flush left, the others flush right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def number(value: float | None) -> str:
    """Four digits, or a dash where a score is not defined."""
    return "-" if value is None else f"{value:.4f}"


def scores_of_parts(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The headline scores, one row per part."""
    rows = [
        [part, *(number(scores[name]) for name in HEADLINES), number(scores["auroc"])]
        for part, scores in parts.items()
    ]
    return table(["part", *HEADLINES.values(), "AUROC"], rows)


def full(scores: Mapping[str, Any]) -> str:
    """Every score: overall, then per class."""
    overall = [
        [name.replace("_", " "), number(value)]
        for name, value in scores.items()
        if name not in ("count", "confusion", "per_class")
    ]
    columns = ("precision", "recall", "f1", "auroc", "auroc_hard")
    per_class = [
        [name, *(number(entry[column]) for column in columns), f"{entry['support']:,}"]
        for name, entry in scores["per_class"].items()
    ]
    return (
        table([f"{scores['count']:,} images", ""], overall)
        + "\n\n"
        + table(["class", *columns, "images"], per_class)
    )
