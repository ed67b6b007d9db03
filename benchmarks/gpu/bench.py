"""Measures every provider on every shape on a GPU, interleaved, and writes one CSV as it goes.

    python benchmarks/gpu/bench.py --shapes few
    python benchmarks/gpu/bench.py --shapes many --quick

Each row is written as soon as it is measured. A case that has been measured on this GPU with these
sources and this torch is not measured again, and a provider that fails leaves a row with its error.
GPU_SECONDS bounds the time: a case that would not fit is left for the next run.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent), str(HERE.parent.parent / "gpu")]

import ceilings  # noqa: E402
import machine  # noqa: E402
import measure  # noqa: E402
import opponents  # noqa: E402
import torch  # noqa: E402
from book import COMPLETE, LOST, Book  # noqa: E402
from cases import CASES, QUICK, GpuCase  # noqa: E402

from cfal_kernels import __version__  # noqa: E402
from providers import Step, results  # noqa: E402
from quantiles import quantiles  # noqa: E402

ERRORS = ("error_loss", "error_grad_features", "error_grad_prototypes")
#: What is timed, in this order within a round.
TIMES = ("host_us", "wall_us", "device_queue_us", "device_hot_us", "device_cold_us")
ROUNDS, LEAST_ROUNDS = 15, 4
SECONDS_OF_ROUNDS = 12.0
MOST_STARTS = 5
CUT_OFF = 4  # exit status where cases are left for another run
#: A case is not begun with less than this share of its estimate left.
LEAST_SHARE = 0.8


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=("few", "many"), required=True)
    parser.add_argument("--quick", action="store_true", help="the first shapes only")
    parser.add_argument(
        "--dry", action="store_true", help="tiny shapes on the CPU, host times only"
    )
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    seconds = float(os.environ.get("GPU_SECONDS", "inf"))
    book = Book(Path(os.environ["GPU_OUT"]) / "bench.csv", environment())
    cases = CASES["dry"] if options.dry else CASES[options.shapes]
    cases = cases[: QUICK[options.shapes]] if options.quick else cases
    if not options.dry and not any(row["kernel"] == "ceiling" for row in book.rows):
        for name, rate in ceilings.best_rates():
            book.add(
                {"kernel": "ceiling", "provider": "torch", "metric": name, "p50": f"{rate:.4g}"}
            )
            progress(f"{name}: {rate:.4g}")
    left, device = [], "cpu" if options.dry else "cuda"
    for case in cases:
        complete = {**describe(case), "metric": COMPLETE}
        if book.has(complete):
            progress(f"{case}: measured before")
            continue
        remaining = seconds - (time.monotonic() - begin)
        if remaining < LEAST_SHARE * case.seconds:
            left.append(str(case))
            continue
        started, attempt = time.monotonic(), Attempts(case)
        lost = book.lost(describe(case))
        for row in measure_case(case, device, attempt, lost):
            book.add({**describe(case), **row})
        if device_is_lost(device):
            book.add_lost(describe(case), attempt.failures)
            start_again(begin)
        book.add(complete)
        progress(f"{case}: {time.monotonic() - started:.0f} s (estimated {case.seconds:.0f})")
    if left:
        print(f"left for another run, which takes about 40 s each: {', '.join(left)}")
    failed = sorted({r["provider"] for r in book.rows if r["metric"] in ("failure", LOST)})
    if failed:
        print(f"failed somewhere (see the notes in the CSV): {', '.join(failed)}")
    print(f"{sum(r['metric'] == COMPLETE for r in book.rows)} cases in {book.path.name}")
    return CUT_OFF if left else 0


def start_again(begin: float) -> None:
    """Replaces this process, whose device is lost, by one that leaves out who lost it."""
    starts = int(os.environ.get("BENCH_STARTS", "1"))
    if starts >= MOST_STARTS:
        sys.exit(f"the device was lost {starts} times")
    if seconds := os.environ.get("GPU_SECONDS"):
        os.environ["GPU_SECONDS"] = f"{float(seconds) - (time.monotonic() - begin):.0f}"
    os.environ["BENCH_STARTS"] = str(starts + 1)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.argv])


def environment() -> dict[str, Any]:
    facts = machine.facts()
    return {
        "device": facts.get("gpu", "CPU (dry run)"),
        "driver": facts["driver"],
        "cuda": facts.get("cuda", ""),
        "torch": torch.__version__,
        "triton": facts["packages"]["triton"] or "",
        "version": __version__,
        "commit": facts["commit"],
        "sources": facts["sources"],
        "date": facts["date"],
    }


def describe(case: GpuCase) -> dict[str, Any]:
    shape = {"B": case.case.B, "C": case.case.C, "M": 1, "D": case.case.D}
    return {"kernel": "cfal_loss", **shape, "dtype": case.dtype, "features": case.case.features}


class Attempts:
    """Runs what may fail: an opponent that fails must not end the run, and says why."""

    def __init__(self, case: GpuCase) -> None:
        self.case = case
        self.failures: dict[str, str] = {}

    def __call__(self, name: str, what: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """The result of `work`, or None."""
        try:
            return work(*arguments)
        except Exception as error:
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.failures.setdefault(name, f"{what}: {words}"[:300])
            progress(f"{self.case} {name}: {self.failures[name]}")
            return None


def measure_case(case: GpuCase, device: str, attempt: Attempts, lost: set[str]) -> Iterator[dict]:
    """All rows of one case; who fails is out. `lost` are those that took the device with them."""
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    names = [p for p in case.providers if device == "cuda" or "-reduce" not in p]
    steps: dict[str, Step] = {}
    yield from first_steps(case, [n for n in names if n not in lost], device, attempt, steps)
    graphs = {}
    if device == "cuda":
        for name, step in steps.items():
            for metric in ("launches", "peak_extra_bytes"):
                if metric == "peak_extra_bytes" and name.endswith("-reduce"):
                    continue  # its pool is taken once and counted nowhere
                value = attempt(name, metric, getattr(measure, metric), step)
                if value is not None:
                    yield quantity(name, metric, [float(value)])
        graphs = capture_all(steps, attempt)
    yield from timed(steps, graphs, device, attempt)
    for name, reason in attempt.failures.items():
        yield {"provider": name, "mode": "both", "metric": "failure", "note": reason}


def first_steps(
    case: GpuCase, names: list[str], device: str, attempt: Attempts, steps: dict[str, Step]
) -> Iterator[dict[str, Any]]:
    """Fills `steps` with the providers whose first step works; their errors are the rows."""
    inputs = case.inputs(device)
    expected = attempt("truth", "float64", opponents.truth, inputs)
    for name in names:
        step = attempt(name, "set up", opponents.make_step, name, inputs, device == "cpu")
        if step is None:
            continue
        rows = attempt(name, "first step", errors, step, expected)
        if rows is not None:
            steps[name] = step
            yield from rows


def device_is_lost(device: str) -> bool:
    """Whether an error on the device has ended this process's use of it."""
    try:
        measure.synchronize(device)
    except RuntimeError:
        return True
    return False


def errors(step: Step, expected: tuple[torch.Tensor, ...] | None) -> list[dict[str, Any]]:
    """Relative errors of a first step, which also compiles; none for the softmax head."""
    measure.mark_step()
    actual = [x.clone() for x in results(step)]
    if step.name == "softmax" or expected is None:
        return []
    rows = []
    for metric, a, e in zip(ERRORS, actual, expected, strict=True):
        error = torch.linalg.vector_norm(a - e) / torch.linalg.vector_norm(e)
        mode = "forward" if metric == "error_loss" else "backward"
        row = {"provider": step.name, "mode": mode, "metric": metric}
        rows.append({**row, "error": f"{error.item():.3g}"})
    return rows


def capture_all(steps: dict[str, Step], attempt: Attempts) -> dict[str, measure.Graphs]:
    """Graphs of every provider that does not replay graphs of its own."""
    flush, graphs = measure.Flush(), {}
    for name, step in steps.items():
        if name.endswith("-reduce"):
            continue
        estimate = attempt(name, "timing", measure.wall_us, step, "cuda", 2)
        captured = estimate and attempt(name, "capture", measure.capture, step, flush, estimate)
        if captured is not None:
            graphs[name] = captured
    return graphs


def timed(
    steps: dict[str, Step], graphs: dict[str, measure.Graphs], device: str, attempt: Attempts
) -> Iterator[dict[str, Any]]:
    """Rounds over all providers; every median is of the same rounds."""
    values: dict[tuple[str, str], list[float]] = {}
    begin, names, gone = time.monotonic(), list(steps), set()
    for number in range(-1, ROUNDS):  # the first round warms up
        if number >= LEAST_ROUNDS and time.monotonic() - begin > SECONDS_OF_ROUNDS:
            break
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            if name in gone:
                continue
            one = attempt(name, "timing", one_round, steps[name], graphs.get(name), device)
            if one is None:
                gone.add(name)
                continue
            for metric, value in one.items() if number >= 0 else ():
                values.setdefault((name, metric), []).append(value)
    for (name, metric), found in values.items():
        yield quantity(name, metric, found)


def one_round(step: Step, graphs: measure.Graphs | None, device: str) -> dict[str, float]:
    measures = {"host_us": measure.host_us(step, device), "wall_us": measure.wall_us(step, device)}
    if device == "cuda":
        measures["device_queue_us"] = measure.queue_us(step, measures["host_us"])
    if graphs is not None:
        measures |= {"device_hot_us": graphs.hot_us(), "device_cold_us": graphs.cold_us()}
    assert tuple(measures) == TIMES[: len(measures)]
    return measures


def quantity(name: str, metric: str, values: list[float]) -> dict[str, Any]:
    low, middle, high = (f"{v:.7g}" for v in quantiles(values))
    row = {"provider": name, "mode": "both", "metric": metric}
    return {**row, "p20": low, "p50": middle, "p80": high}


def progress(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
