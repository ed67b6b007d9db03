"""`cfal compare`: several configurations, several seeds, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfal_experiments.cli import parsing
from cfal_experiments.errors import InputError
from cfal_experiments.training import configuration

DESCRIPTION = """\
Train each configuration with each seed under one budget and write results.csv and results.md with
test scores. Given again, the command continues where it stopped."""


def run(name: str, arguments: Sequence[str]) -> int:
    """Parse, train what is missing, and write the table."""
    parser = parsing.parser(name, DESCRIPTION)
    parser.add_argument("--configs", nargs="+", required=True, help="presets or YAML files")
    parser.add_argument("--data", required=True, metavar="PATH", help="the images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--split-seed",
        type=int,
        help="one split for all seeds, such as that of a search (default: a split per seed)",
    )
    parser.add_argument("--ensemble", nargs="+", default=[], help="which of them form an ensemble")
    parser.add_argument(
        "--baseline",
        nargs="+",
        default=[],
        help="which of them the others are compared with, seed by seed, with a bootstrap interval "
        "over the patients of the test part",
    )
    parser.add_argument("--epochs", type=int, help="at most, for all")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("-o", "--output", required=True, help="folder of the runs and the table")
    given = parsing.parse(parser, arguments)
    configs = {}
    for each in given.configs:
        config = configuration.load(each)
        config.data.path = given.data
        config.training.epochs = given.epochs or config.training.epochs
        config.training.threads = given.threads
        config.training.__post_init__()
        configs[Path(each).name.removesuffix(configuration.SUFFIX)] = config
    for option, names in (("ensemble", given.ensemble), ("baseline", given.baseline)):
        if unknown := set(names) - set(configs):
            raise InputError(f"--{option} {' '.join(sorted(unknown))}: not among --configs")

    from cfal_experiments.comparison import compare, paired, report

    trials = compare.plan(list(configs), given.seeds, given.output)
    done = 0

    def tell(trial: compare.Trial, outcome: object) -> None:
        nonlocal done
        done += 1
        test = outcome.scores["test"]
        print(
            f"{done}/{len(trials)}  {trial.name}, seed {trial.seed}: macro F1 "
            f"{test['f1_macro']:.4f}, best of {outcome.epochs} epochs is {outcome.best_epoch}",
            flush=True,
        )

    compare.train_all(trials, configs, tell, split_seed=given.split_seed)
    table = report.rows(trials, given.ensemble)
    markdown = report.as_markdown(table)
    if given.baseline:
        patients = paired.patients_of(next(iter(configs.values())).data)
        found = paired.differences(trials, given.baseline, patients)
        markdown += f"\n\n{paired.as_markdown(found, given.seeds)}"
    (Path(given.output) / "results.csv").write_text(report.as_csv(table), encoding="utf-8")
    (Path(given.output) / "results.md").write_text(markdown + "\n", encoding="utf-8")
    print(f"\ntest scores in %, mean (SD) over seeds {given.seeds}\n\n{markdown}")
    return 0
