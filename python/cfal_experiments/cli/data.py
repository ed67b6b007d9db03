"""`cfal data check`, `fetch` and `prepare`; neither imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from cfal_experiments.cli import parsing
from cfal_experiments.data import commands

FUNCTIONS = {
    "data check": commands.check,
    "data fetch": commands.fetch,
    "data prepare": commands.prepare,
}


def run(name: str, arguments: Sequence[str]) -> int:
    """Parse and call the function of the command; its signature and docstring are the options."""
    function = FUNCTIONS[name]
    parser = parsing.parser(name, (function.__doc__ or "").strip().splitlines()[0])
    # `--to` reads better than a second position.
    parser.add_function_arguments(function, as_positional=True, skip={"to"})
    if "to" in inspect.signature(function).parameters:
        parser.add_argument("--to", required=True, metavar="FOLDER", help="where it goes")
    given = parsing.parse(parser, arguments)
    return function(**vars(given))
