"""The CSV that bench.py writes as it goes, and what of an earlier run still counts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

COLUMNS = (
    "kernel", "provider", "mode", "B", "C", "M", "D", "dtype", "features", "metric", "p20", "p50",
    "p80", "error", "device", "driver", "cuda", "torch", "triton", "version", "commit", "sources",
    "date", "note",
)  # fmt: skip
#: Metrics of rows that say how a case ended: to its end, or with the device in an error.
COMPLETE, LOST = "case_complete", "device_lost"


class Book:
    """The CSV: what is in it of this machine and these sources, and rows as they come."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if self.is_ours(row)]
        self.drop_incomplete()
        self.write()

    def is_ours(self, row: dict[str, Any]) -> bool:
        names = ("device", "driver", "torch", "sources")
        return all(row[name] == str(self.facts[name]) for name in names)

    def drop_incomplete(self) -> None:
        """Forgets cases that were cut off: their providers must be measured side by side."""
        done = {place(row) for row in self.rows if row["metric"] == COMPLETE}
        kept = ("ceiling", LOST)
        self.rows = [
            r for r in self.rows if place(r) in done or r["kernel"] in kept or r["metric"] in kept
        ]

    def lost(self, case: dict[str, Any]) -> set[str]:
        """Providers that made the device unusable in an earlier attempt at this case."""
        rows = (row for row in self.rows if row["metric"] == LOST)
        return {row["provider"] for row in rows if place(row) == place(case)}

    def add_lost(self, case: dict[str, Any], failures: dict[str, str]) -> None:
        """Blames the first that failed; the others failed because of it."""
        name, note = next(iter(failures.items()), ("unknown", "the device was lost"))
        self.add({**case, "provider": name, "mode": "both", "metric": LOST, "note": note})

    def has(self, row: dict[str, Any]) -> bool:
        return any(place(r) == place(row) and r["metric"] == row["metric"] for r in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append({**row, **self.facts})
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def place(row: dict[str, Any]) -> tuple[str, ...]:
    """What tells one case from another."""
    return tuple(str(row.get(name, "")) for name in ("kernel", "B", "C", "D", "dtype", "features"))
