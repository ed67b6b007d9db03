"""The demo: softmax cross-entropy against CFAL on the same data, split, model and budget.

`python -m cfal_experiments.demo` runs on long-tailed handwritten digits, with `--data DIR` on IDC
breast patches that it splits by patient.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options; building it imports neither torch nor scikit-learn."""
    result = argparse.ArgumentParser(
        prog="python -m cfal_experiments.demo",
        description="Compare softmax cross-entropy with CFAL: test scores and time per step.",
    )
    result.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="IDC patches, <patient>/<0|1>/<patch>.png (default: scikit-learn's digits)",
    )
    result.add_argument(
        "--seeds", type=_positive, metavar="N", help="runs per loss (default: 8, with --data 3)"
    )
    result.add_argument(
        "--epochs", type=_positive, metavar="N", help="at most so many (default: the task's own)"
    )
    result.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="CPU threads (default: 1, with --data 2)",
    )
    result.add_argument(
        "--max-patches",
        type=_not_negative,
        metavar="N",
        default=10_000,
        help="use patients up to so many patches, 0 for all (default: 10000)",
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status, 2 for input that cannot be used."""
    options = parser().parse_args(arguments)
    try:
        from cfal_experiments.demo import run
        from cfal_experiments.errors import InputError
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed; pip install 'cfal-kernels[experiments]'",
            file=sys.stderr,
        )
        return 2
    try:
        run.run_demo(
            options.data, options.seeds, options.epochs, options.threads, options.max_patches
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _positive(text: str) -> int:
    value = _not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return value


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)
