"""`cfal data check`, `fetch` and `prepare`; neither imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_type_hints

from docstring_parser import parse
from jsonargparse import ArgumentParser

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
    text = parse(function.__doc__)
    about = "\n\n".join(filter(None, (text.short_description, text.long_description)))
    parser = parsing.parser(name, about)
    _add_options(parser, function, {entry.arg_name: entry.description for entry in text.params})
    return function(**vars(parsing.parse(parser, arguments)))


def _add_options(
    parser: ArgumentParser, function: Callable[..., int], help_of: dict[str, str]
) -> None:
    """What has no default is a position, except a destination; a bool is a flag without a value."""
    kinds = get_type_hints(function)
    by_hand = [name for name in help_of if name == "to" or kinds[name] is bool]
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=set(by_hand))
    for name in by_hand:
        option = f"--{name.replace('_', '-')}"
        if name == "to":
            parser.add_argument(option, required=True, metavar="FOLDER", help=help_of[name])
        else:
            parser.add_argument(option, action="store_true", help=help_of[name])
