"""What the GPU kernels should reach, against what the CSV of bench.py holds; needs no torch.

`python benchmarks/gpu/goals.py benchmarks/results/gpu/bench.csv` prints the tables.

A ratio is of medians of the same rounds. Times against reduce-overhead are taken from the queue,
which both can be measured in; all others from graph replays. Products are counted as the three of
2 B C D operations that no method can avoid (distances, gradient of features, gradient of
prototypes); what is computed twice is not counted.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NOT_MEASURED = "No benchmarks on a GPU yet: `make gpu` measures them."
BYTES = {"float32": 4, "bfloat16": 2}
FUSED = ("fused-triton", "fused-cuda")


class Shape(NamedTuple):
    """What tells one case from another."""

    B: int
    C: int
    D: int
    dtype: str
    features: str

    def __str__(self) -> str:
        near = " near" if self.features == "near" else ""
        return f"({self.B}, {self.C}, {self.D}) {self.dtype}{near}"


class Goal(NamedTuple):
    """One line of the verdict."""

    shape: Shape
    provider: str
    what: str
    measured: float | None
    bound: float
    least: bool

    @property
    def verdict(self) -> str:
        """hit, MISS or not measured."""
        if self.measured is None:
            return "not measured"
        met = self.measured >= self.bound if self.least else self.measured <= self.bound
        return "hit" if met else "MISS"


class Results:
    """Look-ups of medians."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.ceilings: dict[str, float] = {}
        self.shapes: list[Shape] = []
        self.failures: list[tuple[Shape, str, str]] = []
        self._values: dict[tuple[Shape, str, str], float] = {}
        for row in rows:
            if row["kernel"] == "ceiling":
                self.ceilings[row["metric"]] = float(row["p50"])
                continue
            numbers = (int(row[name]) for name in ("B", "C", "D"))
            shape = Shape(*numbers, row["dtype"], row["features"])
            if shape not in self.shapes:
                self.shapes.append(shape)
            if row["metric"] in ("failure", "device_lost"):
                self.failures.append((shape, row["provider"], row["note"]))
            elif text := row["p50"] or row["error"]:
                self._values[shape, row["provider"], row["metric"]] = float(text)

    def get(self, shape: Shape, provider: str, metric: str) -> float | None:
        return self._values.get((shape, provider, metric))

    def best(self, shape: Shape, providers: tuple[str, ...], metric: str) -> float | None:
        """The smallest of several."""
        found = [self.get(shape, provider, metric) for provider in providers]
        return min((x for x in found if x is not None), default=None)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the CSV; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b, or None where one of them is missing or b is 0."""
    return None if a is None or not b else a / b


def goals(results: Results) -> Iterator[Goal]:
    """Every goal of every measured case, for each fused provider that may serve it."""
    for shape in results.shapes:
        few = shape.C <= 64
        for provider in FUSED if few else FUSED[:1]:
            if shape.B <= 256 and few:
                yield from of_small_batches(results, shape, provider)
            elif few:
                yield of_bandwidth(results, shape, provider)
            else:
                yield from of_many(results, shape, provider)


def of_small_batches(results: Results, shape: Shape, provider: str) -> Iterator[Goal]:
    """Where launching dominates: launches, device time, host time."""

    def ours(metric: str) -> float | None:
        return results.get(shape, provider, metric)

    def head(metric: str) -> float | None:
        return results.get(shape, "softmax", metric)

    yield Goal(shape, provider, "launches a step", ours("launches"), 3, False)
    for metric in ("device_hot_us", "device_cold_us"):
        words = metric.split("_")[1]
        share = ratio(ours(metric), head(metric))
        yield Goal(shape, provider, f"device time, {words} / softmax head", share, 0.5, False)
    compiled = results.best(shape, ("gemm-reduce", "broadcast-reduce"), "device_queue_us")
    share = ratio(ours("device_queue_us"), compiled)
    yield Goal(shape, provider, "device time / torch.compile reduce-overhead", share, 0.7, False)
    share = ratio(ours("host_us"), head("host_us"))
    yield Goal(shape, provider, "host time / softmax head", share, 1.0, False)


def of_bandwidth(results: Results, shape: Shape, provider: str) -> Goal:
    """Features read twice and their gradient written once, over the measured copy bandwidth."""
    moved = 3.0 * shape.B * shape.D * BYTES[shape.dtype]
    rate = ratio(1e-3 * moved, results.get(shape, provider, "device_cold_us"))  # GB/s
    share = ratio(rate, results.ceilings.get("copy_gb_s"))
    return Goal(shape, provider, "share of copy bandwidth", share, 0.75, True)


def of_many(results: Results, shape: Shape, provider: str) -> Iterator[Goal]:
    """Where products dominate: speed-ups, memory, share of the matmul rate, closed hinges."""
    ours = results.get(shape, provider, "device_hot_us")
    speed = ratio(results.get(shape, "gemm", "device_hot_us"), ours)
    yield Goal(shape, provider, "speed-up over GEMM eager", speed, 4.0, True)
    speed = ratio(results.get(shape, "gemm-compile", "device_hot_us"), ours)
    yield Goal(shape, provider, "speed-up over torch.compile", speed, 1.5, True)
    held = ratio(results.get(shape, provider, "peak_extra_bytes"), 4.0 * shape.B * shape.C)
    yield Goal(shape, provider, "extra memory / [B, C] in float32", held, 0.99, False)
    if shape.features == "random":
        name = "matmul_bf16_tflop_s" if shape.dtype == "bfloat16" else "matmul_fp32_tflop_s"
        rate = ratio(6e-6 * shape.B * shape.C * shape.D, ours)  # TFLOP/s
        share = ratio(rate, results.ceilings.get(name))
        yield Goal(shape, provider, "share of the matmul rate", share, 0.5, True)
    else:
        random = results.get(shape._replace(features="random"), provider, "device_hot_us")
        speed = ratio(random, ours)
        yield Goal(shape, provider, "speed-up over random features", speed, 1.5, True)


#: Columns of the table of medians.
SHOWN = {
    "launches": "launches",
    "host_us": "host us",
    "wall_us": "wall us",
    "device_queue_us": "device us, queue",
    "device_hot_us": "hot",
    "device_cold_us": "cold",
    "peak_extra_bytes": "extra MiB",
    "error_grad_features": "error grad_f",
    "error_grad_prototypes": "error grad_w",
}


def render(rows: list[dict[str, str]]) -> str:
    """Verdicts, ceilings, medians and failures as markdown."""
    if not rows:
        return NOT_MEASURED
    results, first = Results(rows), rows[0]
    lines = [
        f"Measured on {first['device']}, driver {first['driver']}, CUDA {first['cuda']}, torch "
        f"{first['torch']}, triton {first['triton']}, version {first['version']} at "
        f"{first['commit']} (sources {first['sources']}), {first['date']}: forward and backward "
        f"with both gradients, medians of interleaved rounds.",
        "",
        "| (B, C, D) | provider | goal | measured | bound | |",
        "|---|---|---|--:|--:|---|",
    ]
    for goal in goals(results):
        value = "-" if goal.measured is None else f"{goal.measured:.3g}"
        bound = f"{'>=' if goal.least else '<='} {goal.bound:g}"
        cells = (str(goal.shape), goal.provider, goal.what, value, bound, goal.verdict)
        lines.append(f"| {' | '.join(cells)} |")
    if results.ceilings:
        rates = ", ".join(f"{name} {rate:g}" for name, rate in results.ceilings.items())
        lines += ["", f"Ceilings measured in the same run: {rates}."]
    lines += ["", f"| (B, C, D) | provider | {' | '.join(SHOWN.values())} |"]
    lines += [f"|---|---|{'--:|' * len(SHOWN)}"]
    providers = list(dict.fromkeys(row["provider"] for row in rows if row["provider"]))
    for shape in results.shapes:
        for provider in providers:
            values = [results.get(shape, provider, metric) for metric in SHOWN]
            if any(value is not None for value in values):
                cells = (cell(m, v) for m, v in zip(SHOWN, values, strict=True))
                lines.append(f"| {shape} | {provider} | {' | '.join(cells)} |")
    lines += [f"\n{shape} {name} failed: {note}" for shape, name, note in results.failures]
    return "\n".join(lines)


def cell(metric: str, value: float | None) -> str:
    """A number in the unit of its column."""
    if value is None:
        return "-"
    if metric == "peak_extra_bytes":
        return f"{value / 2**20:.3g}"
    return f"{value:.0e}" if metric.startswith("error") else f"{value:.4g}"


if __name__ == "__main__":
    print(render(read(Path(sys.argv[1]))))
