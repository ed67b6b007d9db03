"""`cfal presets list`: the configurations that come with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cfal_experiments.cli import parsing
from cfal_experiments.training import configuration


def run(name: str, arguments: Sequence[str]) -> int:
    """Print each preset with the first line of its header comment."""
    parser = parsing.parser(name, "List the presets; cfal train --config NAME takes one.")
    parsing.parse(parser, arguments)
    presets = configuration.presets()
    width = max(map(len, presets), default=0)
    for preset, path in presets.items():
        print(f"{preset:<{width}}  {_title(path)}".rstrip())
    return 0


def _title(path: Path) -> str:
    first, *_ = path.read_text(encoding="utf-8").splitlines() or [""]
    return first.lstrip("# ") if first.startswith("#") else ""
