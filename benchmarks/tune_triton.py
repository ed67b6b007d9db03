"""Measures alternatives to the launch shapes of cfal_kernels/triton/config.py on a GPU.

    python benchmarks/tune_triton.py                      every case, both regimes
    python benchmarks/tune_triton.py --regime few --cases 2 --seconds 500

A case begins with the shapes that config.py gives. Their fields are then varied one after the
other, each with the best of the fields before it, and steps (forward and backward, both gradients)
are timed by replaying CUDA graphs in turn. An alternative whose results differ, or that does not
compile, is out and leaves a row that says so. Every measurement goes to --out as it is made; what
is printed last is the best of each case against the current choice. Nothing is changed: a better
rule is for config.py to state, in terms of shapes and dtypes.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[1:1] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "gpu"), str(ROOT / "gpu")]

import bench  # noqa: E402
import measure  # noqa: E402
import opponents  # noqa: E402
from cases import CASES, GpuCase  # noqa: E402

import providers  # noqa: E402
from shapes import Case  # noqa: E402

#: Factors for tiles and warps, which are powers of two, and terms for stages.
TILES, CHUNKS, STAGES = (0.25, 0.5, 2, 4), (0.25, 0.5, 2), (-1, 1, 2)
#: What is varied, by regime: function of config.py, field of what it returns ("" for a number).
FIELDS: dict[str, list[tuple[str, str, tuple[float, ...]]]] = {
    "few": [
        ("few_forward", "b_r", TILES),
        ("few_forward", "b_d", TILES),
        ("few_forward", "num_warps", TILES),
        ("few_backward", "b_r", TILES),
        ("few_backward", "b_d", TILES),
        ("few_backward", "num_warps", TILES),
        ("few_chunks", "", CHUNKS),
    ],
    "many": [
        ("many_tile", "num_warps", TILES),
        ("many_tile", "num_stages", STAGES),
        ("many_tile", "b_r", TILES),
        ("many_tile", "b_o", TILES),
        ("many_tile", "b_d", TILES),
        ("many_tile", "b_s", TILES),
        ("many_chunk", "", CHUNKS),
    ],
}
COLUMNS = (
    "regime", "B", "C", "D", "dtype", "features", "function", "field", "value", "current", "hot_us",
    "cold_us", "note", "device", "driver", "torch", "triton", "commit", "sources", "date",
)  # fmt: skip
ROUNDS = 9
#: Of results against those of the current shapes; sums in another order differ by rounding alone.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}

Overrides = dict[tuple[str, str], int]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regime", choices=("few", "many", "both"), default="both")
    parser.add_argument("--cases", type=int, default=99, help="the first so many of a regime")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing later")
    parser.add_argument("--out", type=Path, default=Path("tune-triton.csv"))
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU, interpreted")
    options = parser.parse_args(arguments)
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which is later
    if not options.dry and not torch.cuda.is_available():
        print("error: needs a CUDA device (--dry tries the machinery without)", file=sys.stderr)
        return 2
    regimes = ("few", "many") if options.regime == "both" else (options.regime,)
    log = Log(options.out, bench.environment())
    deadline = time.monotonic() + options.seconds
    lines = []
    for regime in regimes:
        for case in DRY[regime] if options.dry else CASES[regime][: options.cases]:
            if time.monotonic() > deadline:
                print(f"{case}: no time left")
                continue
            tuning = Tuning(regime, case, log, deadline, options.dry)
            lines.append(tuning.run())
            print(lines[-1], flush=True)
    print("\nbest against current:", *lines, f"written to {options.out}", sep="\n")
    return 0 if lines else 1


#: For the test of this program.
DRY = {"few": [GpuCase(Case(6, 3, 8))], "many": [GpuCase(Case(18, 70, 16))]}


class Log:
    """The CSV, a row as soon as it is measured."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        with path.open("w", newline="") as file:
            self._writer(file).writeheader()

    def _writer(self, file) -> csv.DictWriter:
        names = {"restval": "", "extrasaction": "ignore", "lineterminator": "\n"}
        return csv.DictWriter(file, COLUMNS, **names)

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a", newline="") as file:
            self._writer(file).writerow({**self.facts, **row})


@contextmanager
def shapes(overrides: Overrides, seen: dict[str, Any] | None = None) -> Iterator[None]:
    """config.py with some fields replaced; `seen` collects what it would have returned."""
    from cfal_kernels.triton import config

    def replacing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        fields = {field: v for (function, field), v in overrides.items() if function == name}

        def replaced(*arguments: Any) -> Any:
            current = original(*arguments)
            if seen is not None:
                seen[name] = current
            if "" in fields:
                return fields[""]
            return dataclasses.replace(current, **fields) if fields else current

        return replaced

    with ExitStack() as stack:
        for name in {function for fields in FIELDS.values() for function, _, _ in fields}:
            new = replacing(name, getattr(config, name))
            stack.enter_context(mock.patch.object(config, name, new))
        yield


def alternatives(current: int, changes: tuple[float, ...]) -> list[int]:
    """Values near `current`, in order, without it: products, or sums for the changes of stages."""
    values = (current + c if changes is STAGES else current * c for c in changes)
    return sorted({int(v) for v in values if v >= 1} - {current})


class Tuning:
    """The search over one case."""

    def __init__(self, regime: str, case: GpuCase, log: Log, deadline: float, dry: bool) -> None:
        self.regime, self.case, self.log, self.deadline, self.dry = regime, case, log, deadline, dry
        self.step = opponents.make_step("fused-triton", case.inputs("cpu" if dry else "cuda"))
        self.expected: tuple[torch.Tensor, ...] = ()

    def run(self) -> str:
        """Searches; returns the line that says what was found."""
        seen: dict[str, Any] = {}
        with shapes({}, seen):
            self.expected = self.results()
        best: Overrides = {}
        before = after = None
        for function, field, changes in FIELDS[self.regime]:
            if time.monotonic() > self.deadline:
                break
            current = getattr(seen[function], field) if field else seen[function]
            tried = [best] + [
                best | {(function, field): value} for value in alternatives(current, changes)
            ]
            times = self.times(tried, function, field, current)
            if not times:
                continue
            before = times[0] if before is None else before
            winner = min(times, key=times.__getitem__)
            after, best = times[winner], tried[winner]
        if after is None:
            return f"{self.case}: nothing ran"
        found = ", ".join(f"{f}.{n or 'value'} = {v}" for (f, n), v in best.items())
        return f"{self.case}: {before:.4g} us now, {after:.4g} us with {found or 'the same'}"

    def times(
        self, tried: list[Overrides], function: str, field: str, current: int
    ) -> dict[int, float]:
        """Median hot times by place in `tried`, of those that run and are right."""
        timers, times, notes = {}, {}, {}
        for place, overrides in enumerate(tried):
            try:
                timers[place] = self.prepare(overrides)
            except Exception as error:  # does not compile, or does not fit the device
                notes[place] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        taken: dict[int, list[tuple[float, float]]] = {place: [] for place in timers}
        for _ in range(1 if self.dry else ROUNDS):
            for place, timer in timers.items():
                taken[place].append(timer())
        for place, overrides in enumerate(tried):
            row = self.describe() | {"function": function, "field": field or "value"}
            row |= {"value": overrides.get((function, field), current), "current": current}
            if place in taken:
                hot, cold = (median(values) for values in zip(*taken[place], strict=True))
                times[place] = hot
                row |= {"hot_us": f"{hot:.5g}", "cold_us": f"{cold:.5g}"}
            self.log.add(row | {"note": notes.get(place, "")})
        return times

    def prepare(self, overrides: Overrides) -> Callable[[], tuple[float, float]]:
        """Compiles, compares the results, and returns what takes (hot, cold) microseconds.

        Raises:
            ValueError: the results differ from those of the current shapes.
        """
        with shapes(overrides):
            for got, expected in zip(self.results(), self.expected, strict=True):
                error = (got - expected).norm() / expected.norm()
                if not error < TOLERANCE[self.case.dtype]:
                    raise ValueError(f"wrong results: relative error {error:.1e}")
            if self.dry:
                return lambda: (measure.wall_us(self.step, "cpu", 1), 0.0)
            estimate = measure.wall_us(self.step, "cuda", 3)
            graphs = measure.capture(self.step, measure.Flush(), estimate)
        return lambda: (graphs.hot_us(), graphs.cold_us())

    def results(self) -> tuple[torch.Tensor, ...]:
        return tuple(x.clone() for x in providers.results(self.step))

    def describe(self) -> dict[str, Any]:
        shape = self.case.case
        return {
            "regime": self.regime, "B": shape.B, "C": shape.C, "D": shape.D,
            "dtype": self.case.dtype, "features": shape.features,
        }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
