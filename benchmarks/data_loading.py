"""What reading costs in an AlexNet-32 epoch: batch from the cache, flips, normalisation, the step.

`python benchmarks/data_loading.py` measures on generated images, `--data` on a cache or on anything
that `cfal data prepare` takes. The stages of each batch are timed one after the other in one loop,
so that all meet the same load. Reading is what precedes the step. A share is a median over the sum
of the medians of all stages, which the pauses of a busy machine do not reach. With --cpu-time, on
one thread, neither does the share of the processor that others take.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cfal_experiments import losses, models
from cfal_experiments.data import Cache, Normalisation, open_collection, prepare
from cfal_experiments.data.cache import is_cache
from cfal_experiments.data.images import ImageSet
from cfal_experiments.data.loading import Normalise, flip, make_loader
from quantiles import quantiles
from run import commit, processor

READING = ("batch", "flips", "normalise")
COLUMNS = (
    "loss", "stage", "p20", "p50", "p80", "share", "batch_size", "batches", "images", "source",
    "device", "threads", "clock", "load", "torch", "commit", "date",
)  # fmt: skip


def generated(folder: Path, count: int) -> ImageSet:
    """A cache of noise; the time to read bytes does not depend on what they are."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "x.npz", train_images=images, train_labels=np.arange(count) % 2)
    return prepare(open_collection(folder / "x.npz"), folder / "cache", 32)


def epoch(
    data: ImageSet, loss: str, batch_size: int, limit: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each stage of each batch of an epoch, the first ten left out."""
    torch.manual_seed(0)
    model = models.build("alexnet32").to(memory_format=torch.channels_last)
    head = losses.build(loss, data.num_classes, model.embedding_dim, data.counts())
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3, fused=True)
    rows = np.arange(len(data))
    normalise = Normalise(Normalisation.of(data.images, rows))
    loader = iter(make_loader(data, rows, batch_size, shuffle=True))
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(min(len(loader) - 1, limit)):  # the last batch is shorter
        times = [clock()]
        batch = next(loader)
        times.append(clock())
        images = flip(batch.images, batch.rows, 0, 0)
        times.append(clock())
        images = normalise(images)
        times.append(clock())
        optimizer.zero_grad()
        head(model(images), batch.labels).backward()
        optimizer.step()
        times.append(clock())
        if number >= 10:
            for stage, begin, end in zip((*READING, "step"), times, times[1:], strict=False):
                seconds[stage].append(end - begin)
    return seconds


def main() -> int:
    """Measure and write a CSV; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="cache or images (default: generated)")
    parser.add_argument("--images", type=int, default=20_000, help="how many to generate")
    parser.add_argument("--batches", type=int, default=500, help="at most so many per loss")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--losses", nargs="+", default=["cross-entropy", "cfal"])
    default = Path(__file__).parent / "results" / "data-loading.csv"
    parser.add_argument("-o", "--output", type=Path, default=default)
    parser.add_argument("--cpu-time", action="store_true", help="CPU time on one thread")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        options.threads = 1  # threads that wait for others spin, and would count as work
    torch.set_num_threads(options.threads)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""  # of others, before
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            data = generated(Path(folder), options.images)
        elif is_cache(options.data):
            data = Cache.open(options.data)
        else:
            data = prepare(open_collection(options.data), Path(folder) / "cache", 32)
        for loss in options.losses:
            seconds = epoch(data, loss, options.batch_size, options.batches, clock)
            total = sum(map(statistics.median, seconds.values()))
            seconds["reading"] = [
                sum(times) for times in zip(*map(seconds.get, READING), strict=True)
            ]
            for stage, times in seconds.items():
                p20, p50, p80 = quantiles(times)
                share = p50 / total
                print(f"{loss:<15}{stage:<11}{p50 * 1e6:9.0f} us {share:8.2%}")
                values = (
                    loss, stage, f"{p20:.3g}", f"{p50:.3g}", f"{p80:.3g}",
                    f"{share:.4f}", options.batch_size, len(times), len(data),
                    "generated" if options.data is None else options.data.name, processor(),
                    options.threads, clock.__name__, load, torch.__version__, commit(),
                    time.strftime("%Y-%m-%d"),
                )  # fmt: skip
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    with options.output.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
