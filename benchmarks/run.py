"""Measures every provider on every shape in one process, interleaved, and writes one CSV.

    python benchmarks/run.py                         the shapes of the README, some minutes
    python benchmarks/run.py --shapes small          seconds, for tests
    python benchmarks/run.py --providers fused,softmax --no-memory

Times are wall-clock microseconds of a step in training: "forward" with gradients recorded,
"backward" after an untimed forward, "both" = gradients set to None, forward, backward with respect
to features and prototypes. A round runs each provider once in each mode; a provider leaves the
rounds when it has used its time, never before the least number of rounds.

Errors are relative, in the 2-norm over all elements, against the gemm provider in float64.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import cfal_kernels as cfal
import memory
import table
from providers import PROVIDERS, Step, gemm, make_step, results
from quantiles import quantiles
from shapes import SHAPES, Case, make_inputs

HERE = Path(__file__).resolve().parent
MODES = ("forward", "backward", "both")
ERRORS = ("error_loss", "error_grad_features", "error_grad_prototypes")
MOST_ROUNDS = 300
COLUMNS = (
    "kernel", "provider", "mode", "B", "C", "M", "D", "dtype", "features", "metric", "p20", "p50",
    "p80", "error", "device", "threads", "torch", "isa", "version", "commit", "date", "note",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="full")
    parser.add_argument("--providers", default=",".join(PROVIDERS), help="separated by commas")
    parser.add_argument("--threads", type=int, default=2)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    which.add_argument(
        "--only-memory",
        action="store_true",
        help="keep the other rows of --out; bytes, unlike times, do not mind a busy machine",
    )
    parser.add_argument("--out", type=Path, default=table.RESULTS)
    parser.add_argument(
        "--readme", action="store_true", help="also put the table into README.md (from --out)"
    )
    options = parser.parse_args(arguments)
    names = options.providers.split(",")
    if unknown := set(names) - set(PROVIDERS):
        parser.error(f"no such provider: {', '.join(sorted(unknown))}")
    torch.set_num_threads(options.threads)

    rows: list[dict[str, Any]] = []
    if options.only_memory:
        rows = [row for row in table.read(options.out) if row["metric"] != "peak_extra_bytes"]
    facts = environment(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        counter, why_not = None, "left out with --no-memory"
        if not options.no_memory:
            counter, why_not = memory.build_counter(Path(folder))
        for index, case in enumerate(SHAPES[options.shapes]):
            begin = time.perf_counter()
            for row in () if options.only_memory else measure(case, names):
                rows.append({**describe(case), **row, **facts})
            for name in names:
                if case.features == "random" and name not in case.left_out:
                    row = {"provider": name, "mode": "both", "metric": "peak_extra_bytes"}
                    row["note"] = why_not
                    if counter is not None:
                        where = (options.shapes, index, name, options.threads)
                        row |= peak_memory(counter, *where)
                    rows.append({**describe(case), **row, **facts})
            write(rows, options.out)  # what is measured stays, whatever happens to the next case
            progress(f"{case} took {time.perf_counter() - begin:.0f} s")
    progress(f"wrote {options.out}")
    goals = {table.key(describe(case)): case.goals for case in SHAPES[options.shapes]}
    print(table.render(table.read(options.out), goals))
    if options.readme:
        table.write_readme(table.render(table.read(options.out)))


def write(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measure(case: Case, names: list[str]) -> Iterator[dict[str, Any]]:
    """Times and errors of the providers on one case, as rows."""
    torch.compiler.reset()
    inputs = make_inputs(case)
    steps = []
    for name in names:
        if name in case.left_out:
            note = case.left_out[name]
            yield {"provider": name, "mode": "both", "metric": "time_us", "note": note}
            continue
        progress(f"{case} {name}")
        steps.append(make_step(name, inputs))
    truth = Step("truth", gemm, make_inputs(case, torch.float64))
    expected = results(truth)
    for step in steps:
        actual = results(step)  # this is the warm-up as well, and compiles
        if step.name == "softmax":
            continue
        for metric, a, e in zip(ERRORS, actual, expected, strict=True):
            error = torch.linalg.vector_norm(a - e) / torch.linalg.vector_norm(e)
            yield {
                "provider": step.name,
                "mode": "forward" if metric == "error_loss" else "backward",
                "metric": metric,
                "error": f"{error.item():.3g}",
            }
    del truth, expected
    progress(f"{case} timing")
    for (name, mode), seconds in interleave(steps, case).items():
        low, middle, high = (f"{1e6 * s:.1f}" for s in quantiles(seconds))
        yield {
            "provider": name,
            "mode": mode,
            "metric": "time_us",
            "p20": low,
            "p50": middle,
            "p80": high,
        }


def peak_memory(counter: Path, shapes: str, index: int, provider: str, threads: int) -> dict:
    """The columns of one peak; a measurement that fails does not take the others with it."""
    try:
        value = memory.peak_extra_bytes(counter, shapes, index, provider, threads)
    except RuntimeError as error:
        progress(str(error))
        return {"note": str(error)}
    return {"p20": value, "p50": value, "p80": value, "note": ""}


def interleave(steps: list[Step], case: Case) -> dict[tuple[str, str], list[float]]:
    """Seconds of each step in each mode; the steps take turns, a new one beginning each round."""
    seconds: dict[tuple[str, str], list[float]] = {
        (step.name, mode): [] for step in steps for mode in MODES
    }
    spent = dict.fromkeys((step.name for step in steps), 0.0)
    for number in range(MOST_ROUNDS):
        turn = [s for s in steps if number < case.least or spent[s.name] < case.seconds]
        if not turn:
            break
        first = number % len(turn)
        for step in turn[first:] + turn[:first]:
            begin = time.perf_counter()
            for mode, value in one_turn(step).items():
                seconds[step.name, mode].append(value)
            spent[step.name] += time.perf_counter() - begin
    return seconds


def one_turn(step: Step) -> dict[str, float]:
    clock = time.perf_counter
    step.zero_grad()
    begin = clock()
    loss = step.forward()
    forward = clock()
    loss.backward()
    backward = clock()
    del loss
    between = clock()
    step.both()
    both = clock()
    return dict(zip(MODES, (forward - begin, backward - forward, both - between), strict=True))


def describe(case: Case) -> dict[str, Any]:
    return {
        "kernel": "cfal_loss",
        "B": case.B,
        "C": case.C,
        "M": 1,
        "D": case.D,
        "dtype": "float32",
        "features": case.features,
    }


def environment(threads: int) -> dict[str, Any]:
    return {
        "device": processor(),
        "threads": threads,
        "torch": torch.__version__,
        "isa": cfal.build_info()["isa_in_use"] or "unknown",
        "version": cfal.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The checkout's commit, with a mark where the measured code differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "../csrc", "../cfal_kernels", ".")
        own = [line for line in changed.splitlines() if "benchmarks/results" not in line]
        return git("rev-parse", "--short", "HEAD") + ("-changed" if own else "")
    except OSError:
        return "unknown"


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
