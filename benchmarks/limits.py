"""What the goals of run.py would leave, beside parts of a step that no implementation is without.

    python benchmarks/limits.py                      writes results/limits.csv

Of every shape, in interleaved rounds in one process:

- record: recording one multiplication of a scalar and its backward(), the least that autograd costs
- bytes: reading the features once and writing their gradient once, as a copy of torch
- products: the three matrix products of a step (f w^T, e w, e^T f) by torch's BLAS, whole
- multiply-adds: as many as these products have, at the rate of torch's BLAS on square matrices

and whole steps: the opponents, the fused one, and, as "fused-python-autograd", the fused one
recorded by the autograd function in Python, which serves where the one in C++ was not built.

A goal of "n times faster than p" leaves p / n; it is out of reach where record and the larger of
bytes and products already take longer. Few prototypes take no matrix products (BLAS is slow at
theirs), but as many multiply-adds: for them record and the larger of bytes and multiply-adds is
what an implementation would take that does nothing else and wastes no cycle.
"""

from __future__ import annotations

import csv
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cfal_kernels import ops
from providers import make_step
from run import describe, environment
from shapes import SHAPES, Case, Inputs, make_inputs

OUT = Path(__file__).resolve().parent / "results" / "limits.csv"
OPPONENTS = ("broadcast", "gemm", "gemm-compile", "broadcast-compile", "fused")
LARGEST = 2e9  # multiply-adds of a product; beyond it one round takes seconds
LARGEST_BROADCAST = 1e8  # elements of [B, C, D], likewise
SIDE, SQUARE = 1024, "multiply-adds"
SECONDS, MOST_ROUNDS = 8.0, 100
COLUMNS = ("B", "C", "M", "D", "dtype", "features", "kernel", "part", "p50_us", "device", "threads",
           "torch", "isa", "version", "commit", "date")  # fmt: skip


def main() -> None:
    torch.set_num_threads(2)
    rows = []
    for case in SHAPES["full"]:
        if case.features != "random" or case.B * case.C * case.D > LARGEST:
            continue
        torch.compiler.reset()
        medians = measure(case)
        facts = {**describe(case), **environment(2)}
        rows += [{**facts, "part": part, "p50_us": f"{1e6 * s:.1f}"} for part, s in medians.items()]
        print(report(case, medians), flush=True)
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def parts(inputs: Inputs) -> dict[str, Callable[[], object]]:
    """The parts that every implementation has, as calls."""
    features, prototypes = inputs.features.detach(), inputs.prototypes.detach()
    scalar = torch.ones((), requires_grad=True)
    grad, coefficients = torch.empty_like(features), features @ prototypes.t()

    def record() -> None:
        scalar.grad = None
        (scalar * 2.0).backward()

    def bytes_() -> None:
        grad.copy_(features)

    square = torch.randn(SIDE, SIDE)

    def square_product() -> None:
        torch.mm(square, square)

    def products() -> None:
        torch.mm(features, prototypes.t())
        torch.mm(coefficients, prototypes)
        torch.mm(coefficients.t(), features)

    return {"record": record, "bytes": bytes_, "products": products, SQUARE: square_product}


def measure(case: Case) -> dict[str, float]:
    """Median seconds of each part and of each opponent's whole step."""
    inputs = make_inputs(case)
    calls = parts(inputs)
    for name in OPPONENTS:
        too_large = name == "broadcast" and case.B * case.C * case.D > LARGEST_BROADCAST
        if name not in case.left_out and not too_large:
            calls[name] = make_step(name, inputs).both
    if ops.compiled is not None and ops.compiled.loss is not None:
        calls["fused-python-autograd"] = recorded_in_python(make_step("fused", inputs).both)
    for call in calls.values():  # compiles, packs, fills caches
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    order, shuffle = list(calls.items()), random.Random(0).shuffle
    for _ in range(MOST_ROUNDS):
        shuffle(order)  # who runs after whom decides what is in the caches
        for name, call in order:
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
        if time.perf_counter() - begin > SECONDS:
            break
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    medians[SQUARE] *= 3 * case.B * case.C * case.D / SIDE**3
    return medians


def recorded_in_python(call: Callable[[], object]) -> Callable[[], object]:
    """The call without the autograd function in C++ and its entry."""
    compiled, python = ops.compiled, ops.compiled._replace(loss=None, entry=None)

    def both() -> None:
        ops.compiled = python
        try:
            call()
        finally:
            ops.compiled = compiled

    return both


def report(case: Case, medians: dict[str, float]) -> str:
    """Microseconds: the parts, what the goals leave, and what the fused step takes."""
    words = [f"{case}:", *(f"{name} {1e6 * s:.0f}" for name, s in medians.items())]
    compiled = min(s for name, s in medians.items() if name.endswith("compile"))
    for name, goal, opponent in (
        ("broadcast", case.goals.broadcast, medians.get("broadcast")),
        ("GEMM", case.goals.gemm, medians["gemm"]),
        ("compile", case.goals.compiled, compiled),
    ):
        if goal and opponent:
            words.append(f"| {goal:g}x of {name} leaves {1e6 * opponent / goal:.0f}")
    return " ".join(words)


if __name__ == "__main__":
    main()
