"""Times one float32 matrix product by MKL and by oneDNN, as torch brings them.

    python benchmarks/products.py                    writes results/products.csv

The products are those of a training step with many prototypes. Medians of interleaved rounds, one
thread, as the kernels call them, and two.
"""

from __future__ import annotations

import csv
import statistics
import time
from pathlib import Path

import torch

from run import environment

ROUNDS = 21
SHAPES = {"f w^T": (256, 1000, 512), "e w": (256, 512, 1000), "e^T f": (256, 512, 1024)}
OUT = Path(__file__).resolve().parent / "results" / "products.csv"
COLUMNS = ("product", "m", "n", "k", "library", "p50_us", "gflops", "device", "threads", "torch",
           "isa", "version", "commit", "date")  # fmt: skip


def main() -> None:
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, (m, n, k) in SHAPES.items():
            x, weight = torch.randn(m, k), torch.randn(n, k)
            out = torch.empty(m, n)
            linear = torch.ops.mkldnn._linear_pointwise
            libraries = {
                "mkl": lambda x=x, w=weight, out=out: torch.mm(x, w.t(), out=out),
                "onednn": lambda x=x, w=weight, f=linear: f(x, w, None, "none", [], ""),
            }
            for library, seconds in medians(libraries).items():
                numbers = {
                    "p50_us": f"{1e6 * seconds:.1f}",
                    "gflops": f"{2e-9 * m * n * k / seconds:.0f}",
                }
                shape = {"product": name, "m": m, "n": n, "k": k, "library": library}
                rows.append(shape | numbers | environment(threads))
                print(*rows[-1].values())
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def medians(calls: dict) -> dict[str, float]:
    seconds = {name: [] for name in calls}
    for round_ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if round_ > 0:  # the first one packs and compiles
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
