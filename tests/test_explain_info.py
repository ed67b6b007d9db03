"""Which backend serves and why, what was built, and the parts that need no torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

import cfal_kernels as cfal
from cfal_kernels import _build, _regime, backends, ops
from support import problem

_CUDA_ELSEWHERE = "the tensors are on cpu, not on a CUDA device"
BLOCK_TORCH = "import sys; sys.modules['torch'] = None\n"


def python(code: str, *, check: bool = True) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestExplain:
    def test_auto(self):
        f, w, _ = problem()
        answer = cfal.explain(f, w)
        assert answer.backend == ("reference" if ops.unavailable else "cpu")
        assert set(answer.reasons) == {"cuda", "triton", "cpu", "reference"} - {answer.backend}
        assert answer.reasons["cuda"] == (ops.cuda_unavailable or _CUDA_ELSEWHERE)
        missing = importlib.util.find_spec("triton") is None
        wanted = "cfal-kernels[triton]" if missing else "TRITON_INTERPRET"
        assert wanted in answer.reasons["triton"]
        for reason in answer.reasons.values():
            assert reason in str(answer)

    def test_without_the_library(self, monkeypatch):
        monkeypatch.setattr(ops, "unavailable", "CFAL_BUILD=none")
        answer = cfal.explain(*problem())
        assert answer.backend == "reference" and answer.reasons["cpu"] == "CFAL_BUILD=none"

    def test_explicit(self, backend):
        answer = cfal.explain(*problem(), backend=backend)
        assert answer.backend == backend
        with pytest.raises(RuntimeError, match="backend='cuda' cannot serve this call"):
            cfal.explain(*problem(), backend="cuda")

    def test_cuda_serves_few_prototypes_alone(self, monkeypatch):
        monkeypatch.setattr(ops, "cuda_unavailable", "")
        facts = (torch.float32, torch.float32)
        refuses = backends.BACKENDS["cuda"].refuses
        assert refuses("cuda", *facts, _regime.FEW) == ""
        assert refuses("cpu", *facts, _regime.FEW) == _CUDA_ELSEWHERE
        assert "up to 64 prototypes" in refuses("cuda", *facts, _regime.MANY)
        assert "Triton kernels only" in refuses("cuda", *facts, _regime.MANY)

    def test_why_cuda_is_not_there(self, monkeypatch, tmp_path):
        assert torch.version.cuda is not None or "build without CUDA" in ops._load_cuda()
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(_build, "FOLDER", tmp_path)
        (tmp_path / "build.json").write_text('{"reasons": {"cfal_torch_cuda": "no nvcc"}}')
        assert ops._load_cuda().endswith("not part of this build: no nvcc")
        (tmp_path / "cfal_torch_cuda.so").write_text("no object")
        assert "cfal_torch_cuda.so does not load under torch" in ops._load_cuda()
        monkeypatch.setattr(ops, "unavailable", "no CPU operators")
        assert "adds to operators that are not there: no CPU operators" in ops._load_cuda()

    @pytest.mark.parametrize(
        "classes,centres,regime", [(64, 1, "few"), (65, 1, "many"), (33, 2, "many")]
    )
    def test_regime(self, classes, centres, regime):
        f, w, _ = problem(classes=classes, centres=centres)
        assert cfal.explain(f, w).regime == regime
        assert cfal.explain(f, w[:, 0]).regime == ("few" if classes <= 64 else "many")

    def test_wrong_arguments_raise(self):
        f, w, _ = problem()
        with pytest.raises(ValueError, match="D = 5 and prototypes"):
            cfal.explain(f, torch.zeros(4, 6))
        with pytest.raises(ValueError, match="sigma must be > 0"):
            cfal.explain(f, w, sigma=-1.0)

    def test_choice_depends_on_metadata_only(self):
        f, w, _ = problem()
        nothing = cfal.explain(torch.full_like(f, float("nan")), w)
        assert nothing == cfal.explain(f, w)
        assert cfal.explain(f.detach().to("meta"), w.detach().to("meta")).backend == nothing.backend

    def test_errors_are_those_of_the_loss(self):
        with pytest.raises(TypeError, match="features must be a dense"):
            cfal.explain(torch.zeros(4, 8).to_sparse(), torch.zeros(2, 8))
        with pytest.raises(TypeError, match="prototypes must be a dense"):
            cfal.explain(torch.zeros(4, 8), torch.zeros(2, 8).to_sparse())


class TestInfo:
    def test_facts(self):
        info = cfal.build_info()
        assert info["version"] == cfal.__version__
        assert info["torch"] == torch.__version__
        assert set(info["backends"]) == {"cuda", "triton", "cpu", "reference"}
        assert info["backends"]["reference"] == "available"
        assert info["backends"]["cpu"] == (ops.unavailable or "available")
        assert (info["objects"]["cfal_torch_cpu"] is None) or not ops.unavailable

    def test_module_prints_them(self):
        text = subprocess.run(
            [sys.executable, "-m", "cfal_kernels.info"], capture_output=True, text=True, check=True
        ).stdout
        assert f"version: {cfal.__version__}" in text
        assert f"torch: {torch.__version__}" in text

    def test_version_is_the_distributions(self):
        from importlib import metadata

        try:
            installed = metadata.version("cfal-kernels")
        except metadata.PackageNotFoundError:
            pytest.skip("the package is used from its source tree, without metadata")
        assert installed == cfal.__version__

    def test_reason_of_the_build_is_passed_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_build, "FOLDER", tmp_path)
        assert "install the package" in _build.why_missing("cfal_torch_cpu")
        (tmp_path / "build.json").write_text('{"reasons": {"cfal_torch_cpu": "no compiler"}}')
        assert _build.why_missing("cfal_torch_cpu").endswith("no compiler")
        assert _build.find("cfal_torch_cpu") is None


class TestWithoutTorch:
    def test_import_does_not_import_torch(self):
        code = "import sys, cfal_kernels, cfal_kernels.diagnostics; print('torch' in sys.modules)"
        assert python(code) == "False"

    def test_info(self):
        code = BLOCK_TORCH + (
            "import cfal_kernels as cfal\n"
            "info = cfal.build_info()\n"
            "print(info['torch'], 'torch cannot be imported' in info['backends']['cpu'])"
        )
        assert python(code) == "None True"

    def test_clear_message(self):
        code = BLOCK_TORCH + (
            "import cfal_kernels as cfal\n"
            "try: cfal.cfal_loss\n"
            "except ImportError as error: print(error)"
        )
        assert "pip install torch>=2.10" in python(code)

    def test_numpy_door(self):
        if _build.find(_build.NUMPY_DOOR) is None:
            pytest.skip(_build.why_missing(_build.NUMPY_DOOR))
        code = BLOCK_TORCH + (
            "import numpy as np, cfal_kernels as cfal\n"
            "w = np.array([[0.0, 1.0], [1.0, 1.0]])\n"
            "print(cfal.numpy.cfal_loss(np.array([[1.0, 0.0]]), w, np.array([0]),"
            " sigma=1 / np.log(2), margin=0.5))"
        )
        assert float(python(code)) == pytest.approx(27 / 64, rel=1e-14)


def test_numpy_door_without_its_object():
    code = (
        "import sys; sys.modules['cfal_kernels._lib._numpy_door'] = None\n"
        "import cfal_kernels as cfal\n"
        "from cfal_kernels import _build\n"
        "_build.find = lambda name: None\n"
        "try: cfal.numpy.cfal_loss([[0.0]], [[1.0]], [0])\n"
        "except RuntimeError as error: print(error)"
    )
    assert python(code).startswith("cfal_kernels.numpy is not available: _numpy_door")


def test_every_public_name_resolves():
    for name in cfal.__all__:
        assert getattr(cfal, name) is not None
        assert name in dir(cfal)
    with pytest.raises(AttributeError, match="no attribute 'cfal_los'"):
        cfal.cfal_los  # noqa: B018


def test_first_use_inside_a_compiled_function():
    code = (
        "import torch, cfal_kernels as cfal\n"
        "f = lambda f, w, y: cfal.cfal_loss(f, w, y, backend='reference')\n"
        "f = torch.compile(f, fullgraph=True, backend='eager')\n"
        "print(f(torch.zeros(2, 3), torch.ones(4, 3), torch.zeros(2).long()).shape)"
    )
    assert python(code) == "torch.Size([])"


def test_regime_of_the_public_limit():
    assert _regime.of(64) == _regime.FEW and _regime.of(65) == _regime.MANY
