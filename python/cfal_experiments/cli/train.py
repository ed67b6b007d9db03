"""`cfal train`: from a configuration to a run folder."""

from __future__ import annotations

from collections.abc import Sequence

from cfal_experiments.cli import parsing
from cfal_experiments.errors import InputError
from cfal_experiments.training import configuration

DESCRIPTION = """\
Train a system and write a run folder: configuration, environment, split, metrics, predictions,
checkpoints and the exported model. A preset is named with --config, every field of it can be
overridden: cfal train --config idc_cfal --data PATCHES --loss.sigma 100 -o runs/idc"""


def run(name: str, arguments: Sequence[str]) -> int:
    """Parse and train, or continue."""
    parser = parsing.parser(name, DESCRIPTION)
    parser.add_argument("-o", "--output", help="run folder (default: runs/<preset or loss>)")
    parser.add_argument("--resume", metavar="RUN", help="continue this run; takes only --data")
    parser.add_argument("--seed", type=int, help="sets all four seeds")
    parser.add_argument("--devices", type=int, help="short for --training.devices")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    configuration.add_to(parser)
    given = parsing.parse(parser, configuration.shorthands(arguments))
    if given.resume is not None:
        _require_only(arguments, ("--resume", "--data", "--quiet"))
    config = configuration.from_namespace(parser, given)
    if given.seed is not None:
        for seed in vars(config.seeds):
            setattr(config.seeds, seed, given.seed)
        config.seeds.__post_init__()
    if given.devices is not None:
        config.training.devices = given.devices
        config.training.__post_init__()
    output = given.output or f"runs/{_name(arguments) or config.loss.name}"

    from cfal_experiments.training import run as runs

    if given.resume is not None:
        outcome = runs.resume(given.resume, data=config.data.path, quiet=given.quiet)
    else:
        outcome = runs.train(config, output, quiet=given.quiet)
    if outcome is not None and not given.quiet:
        from cfal_experiments.evaluation import tables

        print(
            f"\n{outcome.folder.path}: best of {outcome.epochs} epochs is {outcome.best_epoch}\n\n"
            f"{tables.scores_of_parts(outcome.scores)}"
        )
    return 0


def _require_only(arguments: Sequence[str], allowed: Sequence[str]) -> None:
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("-") and option not in allowed:
            raise InputError(
                f"{option} does not go with --resume, which takes everything from the run; leave "
                f"it out, or start another run without --resume"
            )


def _name(arguments: Sequence[str]) -> str | None:
    """The stem of the first configuration that is named."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        if option == "--config":
            path = value if equals else following
            return path.rpartition("/")[2].removesuffix(configuration.SUFFIX)
    return None
