"""What the parsers of the sub-commands share. Nothing here imports torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace

from cfal_experiments.errors import InputError
from cfal_experiments.training.configuration import one_line


def parser(name: str, description: str) -> ArgumentParser:
    """A parser that raises instead of printing its usage at every mistake."""
    return ArgumentParser(prog=f"cfal {name}", description=description, exit_on_error=False)


def parse(command: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse, with mistakes as one line.

    Raises:
        InputError: an option that does not exist or a value that does not fit.
    """
    try:
        return command.parse_args(list(arguments))
    except InputError:
        raise
    except (argparse.ArgumentError, ValueError, TypeError, OSError) as error:
        text = one_line(error)
        raise InputError(f"{text}; see '{command.prog} --help'") from error
