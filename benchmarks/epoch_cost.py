"""What an AlexNet-32 epoch costs with one loss, as a ratio to the epoch with cross-entropy.

`python benchmarks/epoch_cost.py --data PATCHES` trains both on the same batches, taking turns batch
by batch, the first one alternating, so that both meet the same load. A turn is everything between
two steps: reading, flips, normalisation, forward, backward, optimizer, and the wait for the device.
An epoch's ratio is that of the summed turns; `paired` is the median over pairs of turns, which the
pauses of a busy machine do not reach.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from cfal_experiments import classifier
from cfal_experiments.data import Normalisation
from cfal_experiments.data.images import ImageSet
from cfal_experiments.data.loading import flip, make_loader
from cfal_experiments.training import optimizers, source
from cfal_experiments.training.config import Config, LossConfig
from run import commit, processor

COLUMNS = (
    "loss", "epoch", "seconds", "baseline_seconds", "ratio", "paired", "batch_size", "batches",
    "device", "threads", "load", "torch", "commit", "date",
)  # fmt: skip
WARM_UP = 10  # batches


def turns(images: ImageSet, loss: str, config: Config, device: str) -> Iterator[float]:
    """Train epoch after epoch; each value is the seconds of one batch."""
    rows = np.arange(len(images))
    model = classifier.build_model(config.model)
    built = classifier.build(
        model, LossConfig(loss), images.counts(), Normalisation.of(images.images, rows)
    ).to(device)
    optimizer = optimizers.build(config.optimizer, built)
    loader = make_loader(images, rows, config.data.batch_size, shuffle=True)
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        batches = iter(loader)
        for _ in range(len(loader)):
            begin = time.perf_counter()
            batch = next(batches)
            pixels, labels = batch.images.to(device), batch.labels.to(device)
            optimizer.zero_grad()
            built(flip(pixels, batch.rows, 0, epoch), labels).backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            yield time.perf_counter() - begin
        epoch += 1


def measure(
    images: ImageSet, losses: tuple[str, str], config: Config, epochs: int, device: str
) -> Iterator[tuple[float, float, float]]:
    """For each epoch: seconds with both losses, and the median ratio of the pairs of turns."""
    systems = [turns(images, loss, config, device) for loss in losses]
    for _ in range(WARM_UP):
        for system in systems:
            next(system)
    count = -(-len(images) // config.data.batch_size)
    for _ in range(epochs):
        seconds = np.empty((count, 2))
        for number in range(count):
            for which in (0, 1) if number % 2 else (1, 0):
                seconds[number, which] = next(systems[which])
        baseline, own = seconds.T
        yield own.sum(), baseline.sum(), float(np.median(own / baseline))


def main() -> int:
    """Measure and write a CSV; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="cache or images")
    parser.add_argument("--loss", default="cfal")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    default = Path(__file__).parent / "results" / "epoch-cost.csv"
    parser.add_argument("-o", "--output", type=Path, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""  # of others, before
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = Config()
    images = source.open_images(config.data, options.data, 32)
    count = -(-len(images) // config.data.batch_size)
    rows, pairs = [], []
    found = measure(images, ("cross-entropy", options.loss), config, options.epochs, device)
    for epoch, (own, baseline, paired) in enumerate(found, start=1):
        pairs.append(paired)
        print(f"epoch {epoch}: {own:.3f} s / {baseline:.3f} s = {own / baseline:.3f}, "
              f"paired {paired:.3f}", flush=True)  # fmt: skip
        values = (
            options.loss, epoch, f"{own:.4f}", f"{baseline:.4f}", f"{own / baseline:.4f}",
            f"{paired:.4f}", config.data.batch_size, count, processor(), options.threads, load,
            torch.__version__, commit(), time.strftime("%Y-%m-%d"),
        )  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    print(f"median paired ratio {statistics.median(pairs):.4f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
