"""Renders the tables of the README from the CSV of run.py.

`python benchmarks/table.py` prints them; with --write they go between the markers in README.md.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shapes import Goals

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu.csv"
README = ROOT / "README.md"
BEGIN = "<!-- benchmarks: written by python benchmarks/table.py --write -->"
END = "<!-- end of benchmarks -->"
NOT_MEASURED = "Not measured yet: `make bench` measures and prints the table."

Row = dict[str, str]
Key = tuple[int, int, int, str]


def read(path: Path) -> list[Row]:
    """The rows of the CSV; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def key(row: Mapping[str, object]) -> Key:
    """What tells one case from another: B, C, D and the kind of features."""
    return int(row["B"]), int(row["C"]), int(row["D"]), str(row["features"])


class Results:
    """Look-ups into the rows."""

    def __init__(self, rows: list[Row]) -> None:
        self.cases = list(dict.fromkeys(key(row) for row in rows))
        self._values: dict[tuple[Key, str, str, str], float] = {}
        for row in rows:
            text = row["p50"] or row["error"]
            if text:
                place = (key(row), row["provider"], row["mode"], row["metric"])
                self._values[place] = float(text)

    def time(self, case: Key, provider: str, mode: str = "both") -> float | None:
        """Median microseconds."""
        return self._values.get((case, provider, mode, "time_us"))

    def compiled(self, case: Key) -> float | None:
        """Median microseconds of the faster of the compiled providers."""
        times = [self.time(case, name) for name in ("gemm-compile", "broadcast-compile")]
        return min((t for t in times if t is not None), default=None)

    def memory(self, case: Key, provider: str) -> float | None:
        """Peak extra bytes."""
        return self._values.get((case, provider, "both", "peak_extra_bytes"))

    def error(self, case: Key, provider: str) -> float | None:
        """The largest of the relative errors of loss and gradients."""
        modes = {"error_loss": "forward"}
        names = ("error_loss", "error_grad_features", "error_grad_prototypes")
        found = [
            self._values.get((case, provider, modes.get(name, "backward"), name)) for name in names
        ]
        return None if None in found else max(found)


def render(rows: list[Row], goals: Mapping[Key, Goals] | None = None) -> str:
    """The tables as markdown; with `goals`, each ratio is followed by what it should reach."""
    if not rows:
        return NOT_MEASURED
    results = Results(rows)
    return "\n".join([caption(rows[0]), "", *speed(results, goals or {}), "", *cost(results)])


def caption(row: Row) -> str:
    return (
        f"Measured on {row['device']}, {row['threads']} threads, torch {row['torch']}, "
        f"instruction set {row['isa']}, version {row['version']} at {row['commit']}, "
        f"{row['date']}: {row['dtype']}, forward and backward with both gradients, medians, "
        f"all providers interleaved in one process."
    )


def speed(results: Results, goals: Mapping[Key, Goals]) -> list[str]:
    """Times, and how many times longer the others take; the last column is the other way round."""
    lines = [
        "| (B, C, D) | fused | broadcast eager | GEMM eager | torch.compile "
        "| fused / softmax head |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for case in results.cases:
        fused, goal = results.time(case, "fused"), goals.get(case)
        others = (
            results.time(case, "broadcast"),
            results.time(case, "gemm"),
            results.compiled(case),
        )
        cells = [name(case), duration(fused)]
        for i, other in enumerate(others):
            ratio = None if None in (other, fused) else other / fused
            cells.append(with_goal(ratio, "x", goal[i] if goal else None, least=True))
        head = results.time(case, "softmax")
        ratio = None if None in (head, fused) else fused / head
        cells.append(with_goal(ratio, "", goal[3] if goal else None, least=False))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def cost(results: Results) -> list[str]:
    """Peak extra memory and largest error."""
    lines = [
        "| (B, C, D) | extra memory: fused | GEMM eager | torch.compile | softmax head "
        "| error: fused | GEMM eager |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for case in results.cases:
        cells = [name(case)]
        cells += [
            size(results.memory(case, p)) for p in ("fused", "gemm", "gemm-compile", "softmax")
        ]
        for provider in ("fused", "gemm"):
            error = results.error(case, provider)
            cells.append("-" if error is None else f"{error:.0e}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def name(case: Key) -> str:
    rows, classes, features, kind = case
    return f"({rows}, {classes}, {features})" + (" near" if kind == "near" else "")


def duration(us: float | None) -> str:
    if us is None:
        return "-"
    if us < 1e3:
        return f"{us:.0f} us"
    return f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def size(count: float | None) -> str:
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def with_goal(ratio: float | None, unit: str, goal: float | None, *, least: bool) -> str:
    if ratio is None:
        return "-"
    text = f"{ratio:.0f}{unit}" if ratio >= 100 else f"{ratio:.3g}{unit}"
    if goal is None:
        return text
    met = ratio >= goal if least else ratio <= goal
    return f"{text} ({'goal' if met else 'MISSES'} {goal:g}{unit})"


def write_readme(text: str, path: Path = README) -> None:
    """Replaces what stands between the markers."""
    before, rest = path.read_text().split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    text = render(read(RESULTS))
    if sys.argv[1:] == ["--write"]:
        write_readme(text)
    else:
        print(text)
