"""The hardware record: what it holds, and that `auto` goes by it on tensors of a GPU."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import cfal_kernels as cfal
from cfal_kernels import _regime, backends, hardware

ENTRY = hardware.Pass(
    regimes=("few", "many"),
    gpu="Some GPU",
    compute_capability="9.0",
    driver="580.1",
    torch="2.11.0+cu130",
    toolchain="triton 3.6.0",
    commit="abc1234",
    sources="0123456789abcdef",
    date="2026-11-24",
    passed=1200,
    skipped=3,
)


def serves(monkeypatch, *names: str) -> None:
    """Lets the backends of those names serve a CUDA tensor, and no other GPU backend."""
    for name in hardware.RECORDED:
        reason = "" if name in names else f"no {name} here"
        stub = dataclasses.replace(backends.BACKENDS[name], refuses=lambda *_, why=reason: why)
        monkeypatch.setitem(backends.BACKENDS, name, stub)


def record(monkeypatch, *names: str) -> None:
    """A record in which the backends of those names have passed."""
    passes = {name: (ENTRY,) if name in names else () for name in hardware.RECORDED}
    monkeypatch.setattr(hardware, "passes", passes)


def explain(classes: int = 3, **keywords) -> backends.Explanation:
    """Of tensors on a GPU that need not exist."""
    with FakeTensorMode():
        f, w = torch.empty(4, 8, device="cuda"), torch.empty(classes, 8, device="cuda")
        return cfal.explain(f, w, **keywords)


class TestAuto:
    def test_takes_what_has_passed(self, monkeypatch):
        serves(monkeypatch, "cuda", "triton")
        record(monkeypatch, "cuda", "triton")
        answer = explain()
        assert answer.backend == "cuda"
        assert answer.reasons["triton"] == "it could, but auto prefers cuda"

    def test_leaves_out_what_has_not(self, monkeypatch):
        serves(monkeypatch, "cuda", "triton")
        record(monkeypatch, "triton")
        answer = explain()
        assert answer.backend == "triton"
        assert answer.reasons["cuda"] == (
            "it could serve, but has not passed on real hardware yet; backend='cuda' asks for it, "
            "and `make gpu` records a pass"
        )

    def test_without_any_pass_the_reference_serves(self, monkeypatch):
        serves(monkeypatch, "cuda", "triton")
        record(monkeypatch)
        answer = explain()
        assert answer.backend == "reference"
        assert "backend='triton' asks for it" in answer.reasons["triton"]

    def test_a_pass_does_not_make_up_for_what_is_missing(self, monkeypatch):
        serves(monkeypatch)
        record(monkeypatch, "cuda", "triton")
        answer = explain()
        assert answer.backend == "reference" and answer.reasons["triton"] == "no triton here"

    def test_backends_of_the_cpu_need_no_pass(self, monkeypatch):
        record(monkeypatch)
        for regime in (_regime.FEW, _regime.MANY):
            assert not hardware.withheld("cpu", regime)
            assert not hardware.withheld("reference", regime)

    @pytest.mark.parametrize("classes,backend", [(3, "triton"), (65, "reference")])
    def test_a_pass_counts_for_its_own_regime(self, monkeypatch, classes, backend):
        serves(monkeypatch, "triton")
        only_few = dataclasses.replace(ENTRY, regimes=("few",))
        monkeypatch.setattr(hardware, "passes", {"cuda": (), "triton": (only_few,)})
        assert explain(classes).backend == backend


def test_an_explicit_backend_needs_no_pass(monkeypatch):
    serves(monkeypatch, "triton")
    record(monkeypatch)
    answer = explain(backend="triton")
    assert answer.backend == "triton"
    assert answer.reasons["reference"] == "it could, but the call asks for triton"


def test_the_warning_names_each_backend_and_the_remedy(monkeypatch):
    serves(monkeypatch, "triton")
    record(monkeypatch)
    idle = dataclasses.replace(backends.BACKENDS["reference"], run=lambda *_: None)
    monkeypatch.setitem(backends.BACKENDS, "reference", idle)
    monkeypatch.setattr(backends, "_FALLBACK", idle)
    with FakeTensorMode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            f, w = torch.empty(4, 8, device="cuda"), torch.empty(3, 8, device="cuda")
            cfal.cfal_loss(f, w, torch.empty(4, dtype=torch.int64, device="cuda"))
    [text] = [str(c.message) for c in caught if issubclass(c.category, cfal.CFALWarning)]
    assert "cuda: no cuda here" in text
    assert "triton: it could serve, but has not passed on real hardware yet" in text
    assert "`make gpu` records a pass" in text


class TestFile:
    def test_of_this_version_is_a_record(self):
        assert hardware.FILE.is_file()
        assert hardware.read() == hardware.passes

    def test_missing_means_no_pass(self, tmp_path):
        assert hardware.read(tmp_path / "none.json") == {"cuda": (), "triton": ()}

    @pytest.mark.parametrize("text", ["{", "[1]", '{"cuda": [{"gpu": "x"}]}', '{"cuda": 1}'])
    def test_what_is_no_record_is_an_error_that_names_the_file(self, tmp_path, text):
        path = tmp_path / "hardware.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"hardware\.json is no hardware record"):
            hardware.read(path)

    def test_append_keeps_the_latest_of_the_same_gpu_and_sources(self, tmp_path):
        path = tmp_path / "hardware.json"
        later = dataclasses.replace(ENTRY, date="2026-11-25")
        other = dataclasses.replace(ENTRY, gpu="Another GPU")
        for entry in (ENTRY, other, later):
            hardware.append("triton", entry, path)
        assert hardware.read(path) == {"cuda": (), "triton": (other, later)}
        assert json.loads(path.read_text())["triton"][1]["commit"] == "abc1234"

    def test_append_refuses_what_needs_no_record(self, tmp_path):
        with pytest.raises(ValueError, match="one of cuda, triton, got 'cpu'"):
            hardware.append("cpu", ENTRY, tmp_path / "hardware.json")


def test_build_info_lists_the_passes(monkeypatch):
    record(monkeypatch, "triton")
    listed = cfal.build_info()["hardware"]
    assert listed["cuda"] == []
    [text] = listed["triton"]
    assert "Some GPU (compute capability 9.0)" in text and "abc1234" in text
