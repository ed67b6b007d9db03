"""Building things that a configuration names: a name out of a registry, and options to check."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from cfal_experiments.errors import InputError

T = TypeVar("T")


def choose(kind: str, name: str, choices: Mapping[str, T], also: str = "") -> T:
    """The entry called `name`.

    Args:
        kind: what is chosen, for the message.
        name: the user's choice.
        choices: all there are.
        also: what else could have been written, for the message.

    Raises:
        InputError: there is none; the message lists those that are.

    Example:
        >>> choose("loss", "cfal", {"cfal": CFAL})
    """
    if name in choices:
        return choices[name]
    raise InputError(f"no {kind} called {name!r}{_nearest(name, choices)}{also and f', or {also}'}")


def options_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """Names and defaults of the options of a class or function: its keyword-only parameters."""
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def construct(
    what: str, factory: Callable[..., T], *arguments: Any, options: Mapping[str, Any]
) -> T:
    """`factory(*arguments, **options)`, with every mistake in the options told in one line.

    Args:
        what: how to call the thing in messages, such as "loss 'cfal'".
        factory: a class or function whose options are keyword-only parameters.
        *arguments: positional arguments, not the user's.
        options: the user's.

    Raises:
        InputError: an option that does not exist, or a value that the factory refuses.
    """
    known = options_of(factory)
    for name in options:
        if name not in known:
            raise InputError(f"{what} has no option {name!r}{_nearest(name, known)}")
    try:
        return factory(*arguments, **options)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: {error}") from error


def _nearest(name: str, choices: Iterable[str]) -> str:
    """What to write instead: the likeliest choice first, then all of them."""
    names = list(choices)
    if not names:
        return "; it has none"
    close = difflib.get_close_matches(str(name), names, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{guess}; there are: {', '.join(names)}"
