"""Tables of a comparison: mean and standard deviation over the seeds, and what an ensemble adds."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from cfal_experiments.comparison.compare import Trial
from cfal_experiments.evaluation import metrics, predictions
from cfal_experiments.evaluation.combining import STRATEGIES, combine

COLUMNS = ("system", "seed", "best_epoch", "epochs", *metrics.HEADLINES, "auroc", "auroc_hard",
           "calibration_error")  # fmt: skip


def rows(trials: Sequence[Trial], members: Sequence[str] = ()) -> list[dict[str, object]]:
    """One row per run, and one per seed and strategy of the ensemble of `members`.

    Args:
        trials: complete runs.
        members: names of the configurations that form the ensemble; none for no ensemble.

    Raises:
        InputError: a run is not complete.
    """
    table: list[dict[str, object]] = []
    for trial in trials:
        summary = trial.folder.read_summary()
        facts = {"system": trial.name, "seed": trial.seed}
        facts |= {name: summary[name] for name in ("best_epoch", "epochs")}
        table.append(facts | _numbers(summary["scores"]["test"]))
    for seed in dict.fromkeys(trial.seed for trial in trials if members):
        parts = [
            predictions.load(trial.folder.predictions, "test")
            for name in members
            for trial in trials
            if (trial.name, trial.seed) == (name, seed)
        ]
        for strategy in STRATEGIES:
            combined = combine([part.probabilities for part in parts], strategy)
            scores = metrics.scores(parts[0].labels, combined, parts[0].class_names)
            table.append({"system": f"ensemble, {strategy}", "seed": seed} | _numbers(scores))
    return table


def as_csv(table: Sequence[dict[str, object]]) -> str:
    """The rows as CSV."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return stream.getvalue()


def as_markdown(table: Sequence[dict[str, object]]) -> str:
    """Mean (standard deviation) over the seeds in per cent, one line per system."""
    systems = dict.fromkeys(str(row["system"]) for row in table)
    lines = [
        f"| system | {' | '.join(metrics.HEADLINES.values())} |",
        "|---|" + "--:|" * len(metrics.HEADLINES),
    ]
    for system in systems:
        own = [row for row in table if row["system"] == system]
        cells = [spread([float(str(row[name])) for row in own]) for name in metrics.HEADLINES]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean (standard deviation, n - 1) in per cent.

    Example:
        >>> spread([0.8, 0.9])
        '85.0 (7.1)'
    """
    mean = f"{100 * np.mean(values):.1f}"
    return f"{mean} ({100 * np.std(values, ddof=1):.1f})" if len(values) > 1 else mean


def _numbers(scores: dict[str, float | None]) -> dict[str, object]:
    names = (*metrics.HEADLINES, "auroc", "auroc_hard", "calibration_error")
    return {name: "" if scores[name] is None else round(scores[name], 5) for name in names}
