"""The tuning program without a GPU: its search on interpreted kernels, and what it refuses."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cfal_kernels.triton import config
from support_kernels import same_package

PROGRAM = Path(__file__).resolve().parent.parent / "benchmarks" / "tune_triton.py"

pytestmark = [
    pytest.mark.skipif(not PROGRAM.is_file(), reason="runs in the source checkout"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is missing"),
]


def start(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=same_package())


@pytest.fixture
def program(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("tune_triton", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_dry_run(tmp_path):
    done = start("--dry", "--regime", "few", "--out", str(tmp_path / "t.csv"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best against current:" in done.stdout and "us now" in done.stdout
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    varied = {(row["function"], row["field"]) for row in rows}
    assert {("few_forward", "b_r"), ("few_backward", "b_d"), ("few_chunks", "value")} < varied
    # Two rows a program do not fit the saved buffer: the search goes on without them.
    refused = [row for row in rows if row["note"]]
    assert {row["value"] for row in refused} == {"1", "2"}
    assert all(row["note"].startswith("b_r must be") and not row["hot_us"] for row in refused)
    assert all(float(row["hot_us"]) > 0 for row in rows if not row["note"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu(tmp_path):
    done = start("--out", str(tmp_path / "t.csv"))
    assert done.returncode == 2 and done.stderr.startswith("error: needs a CUDA device")


def test_alternatives(program):
    assert program.alternatives(8, program.TILES) == [2, 4, 16, 32]
    assert program.alternatives(1, program.CHUNKS) == [2]
    assert program.alternatives(3, program.STAGES) == [2, 4, 5]


def test_shapes_are_replaced_for_a_while(program):
    call = (256, 16, 512, 4)
    before, seen = config.few_forward(*call), {}
    with program.shapes({("few_forward", "b_d"): 7, ("few_chunks", ""): 5}, seen):
        changed = config.few_forward(*call)
        assert (changed.b_r, changed.b_d) == (before.b_r, 7) and config.few_chunks(256, 4) == 5
    assert config.few_forward(*call) == before == seen["few_forward"]


def test_every_field_exists(program):
    tiles = {name: getattr(config, name) for name, _, _ in program.FIELDS["few"]}
    assert set(tiles) == {"few_forward", "few_backward", "few_chunks"}
    for name, field, _ in program.FIELDS["few"]:
        returned = {"few_forward": config.FewForward, "few_backward": config.FewBackward}
        assert name == "few_chunks" or field in returned[name].__dataclass_fields__
