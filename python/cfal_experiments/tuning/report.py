"""What a search leaves behind: trials.csv, best.yaml, and a record of what was searched."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from cfal_experiments import atomic
from cfal_experiments.errors import InputError
from cfal_experiments.evaluation import tables
from cfal_experiments.training import configuration
from cfal_experiments.tuning.search import PART, Plan, Trial, best

SCORES = ("f1_macro", "f1_positive", "balanced_accuracy", "accuracy", "auroc")
RUN_FACTS = ("best_epoch", "epochs", "seconds")


def begin(plan: Plan, output: Path) -> None:
    """Write `search.json`, or check that the search in this folder is the same one.

    Raises:
        InputError: the folder holds another search, or something else.
    """
    file = output / "search.json"
    record = {
        "config": configuration.without_places(plan.base),
        "space": {each.field: each.as_plain() for each in plan.space},
        "repeats": plan.repeats,
        "score": plan.score,
        "search_seed": plan.seed,
    }
    text = json.dumps(record, indent=2) + "\n"
    if file.is_file():
        if file.read_text(encoding="utf-8") != text:
            raise InputError(
                f"{output}: holds a search with other settings ({file.name}); repeat its command "
                f"to go on with it, or choose another folder with -o"
            )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: holds something else; choose another folder with -o")
    else:
        atomic.write_text(file, text)


def save(plan: Plan, trials: Sequence[Trial], output: Path, command: str) -> None:
    """Write `trials.csv`, one row per run, and `best.yaml`, a preset."""
    fields = [each.field for each in plan.space]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["trial", "repeat", *fields, *(f"{PART}_{name}" for name in SCORES), *RUN_FACTS]
    )
    for trial in trials:
        for repeat, summary in enumerate(trial.summaries):
            numbers = [""] * (len(SCORES) + len(RUN_FACTS))
            if summary is not None:
                scores = summary["scores"][PART]
                numbers = [
                    "" if scores[name] is None else round(scores[name], 5) for name in SCORES
                ]
                numbers += [summary[name] for name in RUN_FACTS]
            writer.writerow([trial.number, repeat, *map(trial.values.get, fields), *numbers])
    atomic.write_text(output / "trials.csv", stream.getvalue())
    if any(None not in trial.summaries for trial in trials):
        winner = best(trials)
        header = [
            f"Settings chosen on validation images: the best of {len(trials)} trials.",
            f"  cfal train --config {output / 'best.yaml'} --data PATCHES",
            *textwrap.wrap(f"Chosen by: {command}", 98, subsequent_indent="  "),
            f"{plan.score} {winner.score:.4f} on the validation part of split seed "
            f"{plan.base.seeds.split}, trial {winner.number}, mean of {plan.repeats}; searched:",
            *(f"  {each}" for each in plan.space),
        ]
        config = configuration.override(plan.base, winner.values)
        configuration.save_preset(config, output / "best.yaml", header)


def ranking(plan: Plan, trials: Sequence[Trial], count: int = 10) -> str:
    """The best trials as a table."""
    ranked = sorted(trials, key=lambda trial: -trial.score)[:count]
    fields = [each.field for each in plan.space]
    rows = [
        [str(trial.number), f"{trial.score:.4f}", *(_text(trial.values[name]) for name in fields)]
        for trial in ranked
    ]
    return tables.table(["trial", f"{PART} {plan.score}", *fields], rows)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
