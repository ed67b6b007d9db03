"""`cfal tune`: a search of settings by validation score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfal_experiments.cli import parsing
from cfal_experiments.errors import InputError
from cfal_experiments.training import configuration

DESCRIPTION = """\
Search settings by their score on validation images; the test images of the split take no part.
Writes trials.csv, a run folder per trial, and best.yaml, which cfal train --config takes. Given
again, the command continues where it stopped; with more --trials it goes on. Example: cfal tune
--config idc_cfal --data PATCHES --vary optimizer.learning_rate=1e-4..1e-2 -o runs/tune"""


def run(name: str, arguments: Sequence[str]) -> int:
    """Parse, search, and write the best settings."""
    parser = parsing.parser(name, DESCRIPTION)
    parser.add_argument("-o", "--output", required=True, help="folder of the search")
    parser.add_argument("--trials", type=int, default=20, help="points to train (default: 20)")
    parser.add_argument(
        "--space",
        metavar="NAME|FILE",
        help="`paper`, which is Table III for the loss and the default without --vary, or a YAML "
        "file of lines such as 'loss.sigma: [80, 130]'",
    )
    parser.add_argument(
        "--vary",
        nargs="+",
        default=[],
        metavar="FIELD=VALUES",
        help="search this field as well: loss.sigma=80,130,auto or "
        "optimizer.learning_rate=1e-4..1e-2 (logarithmic)",
    )
    parser.add_argument(
        "--score",
        choices=["f1_macro", "f1_positive", "balanced_accuracy", "accuracy", "auroc"],
        default="f1_macro",
        help="what is maximised (default: f1_macro)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        help="runs per point; they differ in initial weights, order and flips, not in the split, "
        "which is that of --seeds.split (default: 1)",
    )
    parser.add_argument("--search-seed", type=int, default=0, help="of the search itself")
    configuration.add_to(parser)
    given = parsing.parse(parser, configuration.shorthands(arguments))
    base = configuration.from_namespace(parser, given)
    for option, value in (("trials", given.trials), ("repeats", given.repeats)):
        if value < 1:
            raise InputError(f"--{option} {value}: give 1 or more")
    if base.training.devices > 1:
        raise InputError("--training.devices: a search trains on one device")
    if base.data.path is None:
        raise InputError("no images: give a folder, an .npz, a manifest or a cache with --data")

    from cfal_experiments.tuning import space as spaces

    name = given.space or (None if given.vary else "paper")
    space = [] if name is None else spaces.named(name, base.loss.name)
    space = spaces.merge([*space, *map(spaces.parse, given.vary)])
    spaces.check(space, base)

    from cfal_experiments.tuning import report, search

    plan = search.Plan(base, tuple(space), given.repeats, given.score, given.search_seed)
    images = search.prepare(plan)
    output = Path(given.output)
    report.begin(plan, output)
    command = " ".join(["cfal tune", *arguments])

    def tell(trials: list[search.Trial]) -> None:
        report.save(plan, trials, output, command)
        last = trials[-1]
        values = ", ".join(f"{field} {value}" for field, value in last.values.items())
        print(f"trial {last.number}: {plan.score} {last.score:.4f}  {values}", flush=True)

    trials = search.search(plan, images, given.trials, output, tell)
    best = search.best(trials)
    print(f"\n{report.ranking(plan, trials)}\n\nbest: trial {best.number}, {output / 'best.yaml'}")
    return 0
