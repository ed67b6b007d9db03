"""`cfal predict`: classes and posteriors of images that were never seen."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cfal_experiments.cli import parsing

DESCRIPTION = """\
Classify an image, the images of a folder, or those that a pattern matches, and write a CSV: path,
class, and one posterior per class. Files that cannot be read are named and skipped; the status is
then 1."""


def run(name: str, arguments: Sequence[str]) -> int:
    """Parse, predict, write; status 1 if an image failed."""
    parser = parsing.parser(name, DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="folder of a run, or a model.safetensors")
    parser.add_argument("path", metavar="PATH", help="file, folder, or pattern in quotes")
    parser.add_argument("-o", "--output", required=True, help="CSV to write")
    parser.add_argument(
        "--allow-import", action="store_true", help="build a model named by import path"
    )
    given = parsing.parse(parser, arguments)

    from pathlib import Path

    from cfal_experiments.evaluation import unseen

    done, failed = unseen.predict(
        Path(given.run), given.path, Path(given.output), allow_import=given.allow_import
    )
    for path, reason in failed:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    print(f"{given.output}: {done:,} images, {len(failed):,} skipped")
    return 1 if failed else 0
