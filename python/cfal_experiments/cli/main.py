"""Entry point: finds the sub-command, runs it, and turns errors into one line and a status.

Status 0 is success, 1 a check that found problems or a prediction that failed for some images, 2 an
error, 130 an interrupt. The listing imports neither torch nor jsonargparse.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": ("train", "train a system; writes a run folder"),
    "evaluate": ("evaluate", "score a trained system: tables, confusion matrix"),
    "predict": ("predict", "classify images that were never seen; writes a CSV"),
    "ensemble": ("ensemble", "combine the predictions of several runs"),
    "compare": ("compare", "train several losses with several seeds; writes a table"),
    "tune": ("tune", "search settings by validation score; writes a preset"),
    "plot features": ("plot", "draw the features of a trained system in two dimensions"),
    "plot classes": ("plot", "draw the class sizes of a run or a data set"),
    "plot weights": ("plot", "draw the class weights that each beta gives"),
    "data check": ("data", "look for damaged, odd, duplicate or leaking images"),
    "data fetch": ("data", "download a public data set, resumed and verified"),
    "data prepare": ("data", "decode and resize once into a cache"),
    "presets list": ("presets", "list the configurations that come with the package"),
}

DESCRIPTION = """\
usage: cfal COMMAND [--help] [options]

Train and evaluate image classifiers with the Center-Focused Affinity Loss and others.

commands:
{commands}

--debug shows the traceback of an error; --version the version."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `cfal`; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(listing())
        return 0
    if given[0] == "--version":
        from cfal_kernels import __version__

        print(f"cfal {__version__}")
        return 0
    name = " ".join(given[:2]) if f"{' '.join(given[:2])}" in COMMANDS else given[0]
    if name not in COMMANDS:
        return _unknown(given)
    return _run(name, given[len(name.split()) :], debug)


def listing() -> str:
    """The commands and what each does."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return DESCRIPTION.format(commands="\n".join(lines))


def _run(name: str, arguments: list[str], debug: bool) -> int:
    from cfal_experiments.errors import InputError

    try:
        module = importlib.import_module(f"cfal_experiments.cli.{COMMANDS[name][0]}")
        return module.run(name, arguments)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except InputError as error:
        if debug:
            raise
        return _say(f"error: {error}", 2)
    except ModuleNotFoundError as error:
        if debug or (error.name or "").startswith("cfal_"):
            raise
        return _say(
            f"error: {error.name} is not installed; pip install 'cfal-kernels[experiments]'", 2
        )
    except OSError as error:
        if debug:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "check the path and its permissions"
        return _say(
            f"error: {error.filename or name}: {error.strerror or error}; {remedy} and repeat the "
            f"command (a run goes on with 'cfal train --resume')",
            2,
        )
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        return _say(f"error: {text} ({type(error).__name__}; --debug shows where)", 2)


def _unknown(given: list[str]) -> int:
    inner = [name for name in COMMANDS if name.split()[0] == given[0]]
    if inner and (len(given) == 1 or given[1] in ("-h", "--help")):
        print("\n".join(f"cfal {name}  {COMMANDS[name][1]}" for name in inner))
        return 0 if len(given) > 1 else 2
    wanted = " ".join(given[:2]) if inner else given[0]
    close = difflib.get_close_matches(wanted, inner or COMMANDS, n=1)
    hint = f"did you mean 'cfal {close[0]}'?" if close else "'cfal --help' lists the commands"
    return _say(f"error: no command 'cfal {wanted}'; {hint}", 2)


def _say(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
