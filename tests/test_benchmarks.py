"""The benchmark runs, its CSV is complete, and the README's table is what the CSV renders."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from support import needs_kernels

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"

pytestmark = [
    pytest.mark.skipif(
        not BENCHMARKS.is_dir(), reason="runs in the source checkout, which holds benchmarks/"
    ),
    pytest.mark.xdist_group("benchmarks"),
]

MODES = ("forward", "backward", "both")
PROVIDERS = ("broadcast", "gemm", "fused", "softmax")
NOISE = 1e-6  # a few units in the last place of float32, in the 2-norm


def run(*arguments: str) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[list[dict[str, str]], str]:
    """Rows and printed table of the two smallest shapes, without the compiled providers."""
    out = tmp_path_factory.mktemp("benchmarks") / "small.csv"
    done = run(
        str(BENCHMARKS / "run.py"), "--shapes", "small", "--providers", ",".join(PROVIDERS),
        "--out", str(out),
    )  # fmt: skip
    with out.open(newline="") as file:
        return list(csv.DictReader(file)), done.stdout


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("benchmark_table", BENCHMARKS / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_kernels
def test_every_provider_mode_and_metric_has_one_row(small):
    rows, _ = small
    found = [(r["B"], r["provider"], r["mode"], r["metric"]) for r in rows]
    expected = set()
    for rows_of, providers in (("8", PROVIDERS), ("24", PROVIDERS[1:])):
        for provider in providers:
            expected |= {(rows_of, provider, mode, "time_us") for mode in MODES}
            if provider != "softmax":
                expected.add((rows_of, provider, "forward", "error_loss"))
                expected.add((rows_of, provider, "backward", "error_grad_features"))
                expected.add((rows_of, provider, "backward", "error_grad_prototypes"))
    expected |= {("8", provider, "both", "peak_extra_bytes") for provider in PROVIDERS}
    left_out = {("24", "broadcast", "both", "time_us")}
    assert len(found) == len(set(found))
    assert set(found) == expected | left_out
    for row in rows:
        place = (row["B"], row["provider"], row["mode"], row["metric"])
        if place in left_out:
            assert row["note"] and not row["p50"]
        elif row["metric"] == "time_us":
            assert 0.0 < float(row["p20"]) <= float(row["p50"]) <= float(row["p80"])


@needs_kernels
def test_rows_name_the_machine_and_the_code(small):
    rows, _ = small
    for row in rows:
        for column in ("device", "threads", "torch", "isa", "version", "commit", "date"):
            assert row[column], column


@needs_kernels
def test_providers_compute_the_same_loss(small):
    errors = {
        (r["B"], r["provider"], r["metric"]): float(r["error"]) for r in small[0] if r["error"]
    }
    for (_, provider, _), error in errors.items():
        if provider == "fused":
            assert error < NOISE
        else:
            # The expansion loses digits next to a prototype, but not the leading three.
            assert error < 1e-3


@needs_kernels
def test_the_truth_is_the_definition():
    code = """
import torch, cfal_kernels as cfal
from providers import Step, gemm, results
from shapes import DIVERSITY_WEIGHT, GAMMA, MARGIN, SHAPES, make_inputs
for case in SHAPES["small"]:
    x = make_inputs(case, torch.float64)
    loss = cfal.reference.cfal_loss(
        x.features, x.prototypes, x.target, class_weights=x.class_weights, sigma=x.sigma,
        margin=MARGIN, gamma=GAMMA, diversity_weight=DIVERSITY_WEIGHT)
    grads = torch.autograd.grad(loss, (x.features, x.prototypes))
    for a, e in zip(results(Step("", gemm, x)), (loss, *grads)):
        assert torch.linalg.vector_norm(a - e) < 1e-11 * torch.linalg.vector_norm(e), case
"""
    path = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})"
    run("-c", path + code)


@needs_kernels
def test_the_printed_table_has_a_line_for_each_shape(small):
    _, printed = small
    for case in ("(8, 3, 16)", "(24, 80, 16) near"):
        assert sum(line.startswith(f"| {case} |") for line in printed.splitlines()) == 2


@needs_kernels
def test_overhead_benchmarks_run():
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(BENCHMARKS / "test_overhead.py"))


def test_ratios_and_goals_of_made_up_numbers(table):
    common = {"B": "4", "C": "2", "D": "8", "features": "random", "error": ""}
    times = {"fused": 100.0, "broadcast": 1230.0, "gemm": 700.0, "softmax": 200.0}
    times |= {"gemm-compile": 350.0, "broadcast-compile": 250.0}
    rows = [
        {**common, "provider": p, "mode": "both", "metric": "time_us", "p50": str(t)}
        for p, t in times.items()
    ]
    rows.append(
        {**common, "provider": "fused", "mode": "both", "metric": "peak_extra_bytes", "p50": "2048"}
    )
    results = table.Results(rows)
    lines = table.speed(results, {(4, 2, 8, "random"): (10.0, 8.0, 2.0, 0.8)})
    assert lines[2] == (
        "| (4, 2, 8) | 100 us | 12.3x (goal 10x) | 7x (MISSES 8x) | 2.5x (goal 2x) "
        "| 0.5 (goal 0.8) |"
    )
    assert table.cost(results)[2] == "| (4, 2, 8) | 2 KiB | - | - | - | - | - |"


def test_the_readme_shows_what_the_committed_csv_holds(table):
    text = table.README.read_text()
    shown = text.split(table.BEGIN)[1].split(table.END)[0].strip()
    assert shown == table.render(table.read(table.RESULTS)).strip()
