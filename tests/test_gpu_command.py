"""`make gpu` without a GPU: what it refuses, and its machinery tried on the kernels of the CPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cfal_kernels import hardware
from support import needs_kernels

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ROOT / "gpu"

pytestmark = pytest.mark.skipif(
    not COMMAND.is_dir(), reason="runs in the source checkout, which holds gpu/"
)


def start(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    # A worker of pytest-xdist tells whatever it starts that it is one.
    ours = ("GPU_", "PYTEST_XDIST_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=240,
        env={**inherited, "GPU_OUT": str(out), **environment},
    )  # fmt: skip


@pytest.fixture
def module(monkeypatch):
    """Imports a file of gpu/ or benchmarks/gpu/."""
    for folder in (ROOT / "benchmarks" / "gpu", COMMAND):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module


class TestRefusals:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_a_machine_without_a_gpu(self, tmp_path):
        done = start(tmp_path, "gpu/run.py")
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert line.startswith("error: make gpu needs a CUDA device")

    @pytest.mark.parametrize(
        "name,value,message",
        [
            ("GPU_PARTS", "build,tests", "no such part: tests"),
            ("GPU_BACKENDS", "hip", "no such backend: hip"),
            ("GPU_MINUTES", "ten", "GPU_MINUTES='ten' is no number"),
            ("WHEELHOUSE", "/nowhere", "holds no wheels"),
        ],
    )
    def test_settings_that_say_nothing(self, tmp_path, name, value, message):
        done = start(tmp_path, "gpu/run.py", **{name: value})
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert message in line

    def test_an_absent_sanitizer(self, module, monkeypatch, tmp_path, capsys):
        sanitizer = module("sanitizer")
        monkeypatch.setattr(sanitizer, "find_tool", lambda name: None)
        monkeypatch.setenv("GPU_OUT", str(tmp_path))
        assert sanitizer.main() == sanitizer.CANNOT_RUN
        assert "compute-sanitizer is not on PATH" in capsys.readouterr().out


class TestParts:
    def test_groups_and_backends(self, module):
        run = module("run")
        names = [name for name, _ in run.chosen("gates,build", ["cuda"], dry=False)]
        assert names == ["build", "gates-cuda"]
        every = [name for name, _ in run.chosen("all", ["triton", "cuda"], dry=False)]
        assert every == list(run.SHARES)

    def test_programs_exist(self, module):
        run = module("run")
        for _, command in run.chosen("all", ["triton", "cuda"], dry=False):
            assert (ROOT / command[1]).is_file()

    def test_a_part_that_takes_too_long_is_cut_off(self, module, monkeypatch, tmp_path):
        run = module("run")
        monkeypatch.setattr(run, "LEAST_SECONDS", 0.0)
        code = "import time; print('begun', flush=True); time.sleep(60)"
        command = [sys.executable, "-c", code]
        part = run.run_part("slow", command, 1.5, dict(os.environ), tmp_path)
        assert part["status"] == "cut off" and part["seconds"] < 30
        assert "begun" in (tmp_path / "log.txt").read_text()

    @pytest.mark.parametrize("status,word", [(0, "passed"), (1, "failed"), (3, "cannot run")])
    def test_exit_status_and_last_words(self, module, tmp_path, status, word):
        command = [sys.executable, "-c", f"print('why'); raise SystemExit({status})"]
        part = module("run").run_part("x", command, 60.0, dict(os.environ), tmp_path)
        assert (part["status"], part["note"]) == (word, "why")


@pytest.mark.slow
@needs_kernels
class TestDryRun:
    def test_gates_are_kept_and_not_repeated(self, tmp_path):
        pytest.importorskip("mpmath")
        before = hardware.FILE.read_text()
        chosen = ["--tests", "tests/gpu/test_determinism.py", "-k", "few and not 2051"]
        arguments = ["gpu/gates.py", "dry", *chosen]
        first = start(tmp_path, *arguments, GPU_WORKERS="1")
        assert first.returncode == 0, first.stdout + first.stderr
        lines = (tmp_path / "gates-dry.jsonl").read_text().splitlines()
        passed = [x for x in map(json.loads, lines) if x.get("outcome") == "passed"]
        assert len(passed) > 8 and json.loads(lines[-1]) == {"finished": 0}
        second = start(tmp_path, *arguments, GPU_WORKERS="1")
        assert second.returncode == 0 and f"{len(passed)} passed, 0 failed" in second.stdout
        lines = (tmp_path / "gates-dry.jsonl").read_text().splitlines()
        again = [x for x in map(json.loads, lines) if x.get("outcome") == "passed"]
        assert len(again) == len(passed)
        assert hardware.FILE.read_text() == before

    def test_benchmarks_and_summary(self, tmp_path):
        done = start(tmp_path, "gpu/run.py", "--dry", "--parts", "bench")
        assert done.returncode == 0, done.stdout + done.stderr
        text = (tmp_path / "summary.md").read_text()
        assert "| bench-few | passed |" in text and "CPU (dry run)" in text
        assert "| (8, 3, 16) float32 | softmax |" in text and "failed:" not in text
        assert text in done.stdout
        assert set(json.loads((tmp_path / "results.json").read_text())) == {"machine", "parts"}


class TestOutcomes:
    def log(self, tmp_path, *entries) -> Path:
        path = tmp_path / "gates.jsonl"
        path.write_text("\n".join(json.dumps(entry) for entry in entries))
        return path

    def test_the_last_outcome_counts(self, module, tmp_path):
        key, ok, bad = ["s", "g", "t"], {"id": "a", "outcome": "passed"}, {"id": "a"}
        bad["outcome"] = "failed"
        path = self.log(tmp_path, {"started": key}, bad, {"finished": 1}, {"started": key}, ok)
        assert module("gates").read(path, key) == ({"a": ok}, False)

    def test_other_sources_or_machines_are_forgotten(self, module, tmp_path):
        ok = {"id": "a", "outcome": "passed"}
        path = self.log(tmp_path, {"started": ["old", "g", "t"]}, ok, {"finished": 0})
        assert module("gates").read(path, ["new", "g", "t"])[0] == {}

    def test_a_line_that_was_cut_off(self, module, tmp_path):
        path = self.log(tmp_path, {"started": ["s"]}, {"id": "a", "outcome": "passed"})
        path.write_text(path.read_text() + '\n{"id": "b", "outc')
        assert list(module("gates").read(path, ["s"])[0]) == ["a"]


class TestRegimes:
    def passed(self, module, **outcomes) -> tuple[str, ...]:
        names = {"few": "t[triton-few]", "few2": "u[triton-few-f32]", "many": "t[triton-many]"}
        table = {k: {"id": names.get(k, k), "outcome": v} for k, v in outcomes.items()}
        return module("gates").regimes_passed("triton", table)

    def test_each_stands_for_itself(self, module):
        assert self.passed(module, few="passed", many="passed") == ("few", "many")
        assert self.passed(module, few="passed", few2="failed", many="passed") == ("many",)

    def test_what_did_not_run_has_not_passed(self, module):
        assert self.passed(module, few="passed", many="skipped") == ("few",)

    def test_a_failure_of_neither_is_one_of_both(self, module):
        assert self.passed(module, few="passed", many="passed", file="failed") == ()


def rows(**numbers: dict[str, float]) -> list[dict[str, str]]:
    """CSV rows of one case from {provider: {metric: median}}."""
    common = {"kernel": "cfal_loss", "B": "32", "C": "9", "D": "128", "dtype": "float32"}
    common |= {"features": "random", "error": "", "note": ""}
    return [
        {**common, "provider": provider.replace("_", "-"), "metric": metric, "p50": str(value)}
        for provider, metrics in numbers.items()
        for metric, value in metrics.items()
    ]


class TestGoals:
    def verdicts(self, goals, table) -> dict[str, str]:
        return {g.what: g.verdict for g in goals.goals(goals.Results(table))}

    def test_small_batches(self, module):
        goals = module("goals")
        table = rows(
            fused_triton={"launches": 3, "device_hot_us": 5.1, "device_queue_us": 6, "host_us": 40},
            softmax={"device_hot_us": 10.0, "host_us": 50.0},
            gemm_reduce={"device_queue_us": 10.0},
        )
        found = [g for g in goals.goals(goals.Results(table)) if g.provider == "fused-triton"]
        assert [g.verdict for g in found] == ["hit", "MISS", "not measured", "hit", "hit"]
        assert found[1].measured == pytest.approx(0.51)

    def test_bandwidth(self, module):
        goals = module("goals")
        # 3 x 65536 x 512 x 4 bytes in 100 us are 4027 GB/s.
        table = [x | {"B": "65536", "D": "512"} for x in rows(fused_cuda={"device_cold_us": 100})]
        ceiling = {"kernel": "ceiling", "metric": "copy_gb_s", "p50": "4300"}
        [ours] = [
            g for g in goals.goals(goals.Results([*table, ceiling])) if g.provider == "fused-cuda"
        ]
        assert ours.measured == pytest.approx(4026.5 / 4300, rel=1e-3) and ours.verdict == "hit"

    def test_many_prototypes(self, module):
        goals = module("goals")
        shape = {"B": "8192", "C": "1000", "D": "512"}
        numbers = {"fused_triton": {"device_hot_us": 1000.0, "peak_extra_bytes": 2**24}}
        table = rows(
            **numbers, gemm={"device_hot_us": 4100.0}, gemm_compile={"device_hot_us": 1400}
        )
        near = rows(fused_triton={"device_hot_us": 500.0})
        ceiling = {"kernel": "ceiling", "metric": "matmul_fp32_tflop_s", "p50": "50"}
        table = [x | shape for x in table] + [x | shape | {"features": "near"} for x in near]
        found = self.verdicts(goals, [*table, ceiling])
        assert found["speed-up over random features"] == "hit"
        assert found["share of the matmul rate"] == "hit"  # 25.2 of 50 TFLOP/s
        random = [g for g in goals.goals(goals.Results(table)) if g.shape.features == "random"]
        assert [g.verdict for g in random[:3]] == ["hit", "MISS", "hit"]

    def test_nothing_measured(self, module, tmp_path):
        goals = module("goals")
        assert goals.render(goals.read(tmp_path / "none.csv")) == goals.NOT_MEASURED

    def test_a_failure_is_shown(self, module):
        goals = module("goals")
        facts = ("device", "driver", "cuda", "torch", "triton", "version", "commit", "sources")
        row = rows(softmax={"failure": 1})[0] | dict.fromkeys((*facts, "date"), "x")
        row |= {"p50": "", "note": "out of memory"}
        assert "softmax failed: out of memory" in goals.render([row])


class TestBook:
    FACTS = {"device": "g", "driver": "d", "torch": "t", "sources": "s"}
    CASE = {"kernel": "cfal_loss", "B": 1, "C": 2, "D": 3, "dtype": "float32", "features": "random"}

    def test_a_case_that_was_cut_off_is_measured_again(self, module, tmp_path):
        book = module("book")
        first = book.Book(tmp_path / "b.csv", self.FACTS)
        first.add({**self.CASE, "metric": "wall_us", "p50": "1"})
        assert not book.Book(tmp_path / "b.csv", self.FACTS).rows

    def test_a_complete_case_stays_unless_the_sources_change(self, module, tmp_path):
        book = module("book")
        first = book.Book(tmp_path / "b.csv", self.FACTS)
        for metric in ("wall_us", book.COMPLETE):
            first.add({**self.CASE, "metric": metric, "p50": "1"})
        assert book.Book(tmp_path / "b.csv", self.FACTS).has({**self.CASE, "metric": "wall_us"})
        assert not book.Book(tmp_path / "b.csv", self.FACTS | {"sources": "other"}).rows

    def test_who_lost_the_device_is_remembered(self, module, tmp_path):
        book = module("book")
        first = book.Book(tmp_path / "b.csv", self.FACTS)
        first.add_lost(self.CASE, {"fused-cuda": "illegal access", "gemm": "illegal access"})
        assert book.Book(tmp_path / "b.csv", self.FACTS).lost(self.CASE) == {"fused-cuda"}
