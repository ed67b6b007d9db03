"""The closing table of a run: the machine, the parts, the gates, the benchmarks' goals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks" / "gpu"))

import goals  # noqa: E402


def machine_line(facts: dict[str, Any]) -> str:
    """GPU, driver, versions and sources, on one line."""
    gpu = facts.get("gpu", "no GPU")
    capability = facts.get("compute_capability", "-")
    triton = facts["packages"]["triton"]
    return (
        f"{gpu} (compute capability {capability}), driver {facts['driver']}, torch "
        f"{facts.get('torch', '-')}, CUDA {facts.get('cuda', '-')}, triton {triton or '-'}, commit "
        f"{facts['commit']}, sources {facts['sources']}, {facts['date']}"
    )


def render(out: Path) -> str:
    """Markdown of everything under `out`."""
    results = json.loads((out / "results.json").read_text())
    lines = ["# Run on a GPU", "", machine_line(results["machine"]), ""]
    lines += ["| part | outcome | seconds | last words |", "|---|---|--:|---|"]
    for name, part in results["parts"].items():
        note = part["note"].replace("|", "/")
        lines.append(f"| {name} | {part['status']} | {part['seconds']} | {note} |")
    table = goals.render(goals.read(out / "bench.csv"))
    return "\n".join([*lines, "", table, ""])
