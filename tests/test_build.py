"""The build record, the objects, and the decisions of setup.py that cost no compile."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cfal_kernels
from cfal_kernels import _build

ROOT = Path(__file__).resolve().parents[1]
LIB = Path(cfal_kernels.__file__).parent / "_lib"
in_checkout = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="needs the source checkout"
)


@pytest.fixture(scope="module")
def record() -> dict:
    if not _build.record():
        pytest.skip("the package was not built")
    return _build.record()


def test_record_tells_what_was_built(record):
    assert record["version"] == cfal_kernels.__version__
    assert record["mode"] in ("auto", "none", "cpu", "cuda")
    names = {"cfal_torch_cpu", "cfal_torch_autograd", "cfal_torch_cuda", "_numpy_door"}
    assert set(record["objects"]) | set(record["reasons"]) == names
    assert not set(record["objects"]) & set(record["reasons"])
    for name in record["objects"].values():
        assert (LIB / name).is_file()
    if record["objects"]:
        assert record["compiler"] and "-ffast-math" not in record["flags"]
        assert "baseline" in record["isa"]


def _read_elf(tool: str, path: Path, *flags: str) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    return subprocess.run([tool, *flags, path], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_torch_object_ties_to_no_machine(record):
    """No run path, no Python; of torch only libraries that `import torch` has loaded."""
    if "cfal_torch_cpu" not in record["objects"]:
        pytest.skip(record["reasons"]["cfal_torch_cpu"])
    dynamic = _read_elf("readelf", LIB / "cfal_torch_cpu.so", "-d")
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "python" in name]


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
@pytest.mark.parametrize("name", ["cfal_torch_cpu", "cfal_torch_autograd", "_numpy_door"])
def test_objects_export_only_their_entry_points(record, name):
    if name not in record["objects"]:
        pytest.skip(record["reasons"][name])
    symbols = _read_elf("nm", LIB / record["objects"][name], "-DC", "--defined-only")
    assert not [line for line in symbols.splitlines() if "cfal::avx" in line]


@in_checkout
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_variants_share_no_inline_functions():
    """A function that two variants both emit would be merged into one of them, with its
    instructions: on a lesser machine, an illegal instruction. Functions of a variant lie in its
    namespace."""
    objects = sorted(ROOT.glob("build/cmake-*/CMakeFiles/cfal_cpu_avx*.dir/csrc/cpu/kernels.cpp.o"))
    if not objects:
        pytest.skip("no build tree")
    for path in objects:
        isa = re.search(r"cfal_cpu_(\w+)\.dir", str(path))[1]
        weak = re.findall(r"^\S* [WVu] (.*)$", _read_elf("nm", path, "-C", "--defined-only"), re.M)
        # The second form is of names that nm cannot read: lambdas in arguments of templates.
        own = (f"cfal::{isa}::", f"4cfal{len(isa)}{isa}")
        shared = [s for s in weak if not any(o in s for o in own) and not s.startswith("DW.ref.")]
        assert not shared


def _plan(tmp_path: Path, **env: str) -> subprocess.CompletedProcess:
    """Runs setup.py's planning on an empty copy, with no compiler unless `env` names one."""
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("")
    (tmp_path / "LICENSE").write_text("")
    (tmp_path / "cfal_kernels").mkdir()
    (tmp_path / "cfal_kernels" / "__init__.py").write_text("")
    (tmp_path / "python" / "cfal_experiments").mkdir(parents=True)
    (tmp_path / "python" / "cfal_experiments" / "__init__.py").write_text("")
    settings = {"CXX": "/nonexistent/c++", **env}
    keep = {k: v for k, v in os.environ.items() if k not in ("CFAL_BUILD", "MAX_JOBS")}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "out"],
        cwd=tmp_path,
        env=keep | settings,
        capture_output=True,
        text=True,
    )


@in_checkout
class TestModes:
    @pytest.fixture(autouse=True)
    def _needs_setuptools(self):
        pytest.importorskip("setuptools")

    def test_auto_goes_on_without_a_compiler(self, tmp_path):
        done = _plan(tmp_path)
        assert done.returncode == 0
        record = json.loads((tmp_path / "out/cfal_kernels/_lib/build.json").read_text())
        assert record["objects"] == {}
        for reason in record["reasons"].values():
            assert "no C++ compiler" in reason and "/nonexistent/c++" in reason
            assert reason in done.stderr

    def test_cpu_does_not(self, tmp_path):
        done = _plan(tmp_path, CFAL_BUILD="cpu")
        assert done.returncode == 1
        assert "cfal_torch_cpu was not built: no C++ compiler" in done.stderr

    def test_none_asks_for_nothing(self, tmp_path):
        done = _plan(tmp_path, CFAL_BUILD="none")
        assert done.returncode == 0 and "not built" not in done.stderr
        record = json.loads((tmp_path / "out/cfal_kernels/_lib/build.json").read_text())
        names = {"cfal_torch_cpu", "cfal_torch_autograd", "cfal_torch_cuda", "_numpy_door"}
        assert set(record["reasons"]) == names

    @pytest.mark.parametrize(
        ("env", "message"),
        [
            ({"CFAL_BUILD": "fast"}, "CFAL_BUILD='fast' is none of auto, none, cpu, cuda"),
            ({"CFAL_BUILD": "cuda"}, "CFAL_BUILD=cuda, but cfal_torch_cpu was not built"),
            ({"CFAL_TORCH_DIR": "/nonexistent", "CXX": sys.executable}, "CFAL_TORCH_DIR"),
        ],
    )
    def test_a_wrong_setting_is_a_one_line_error(self, tmp_path, env, message):
        done = _plan(tmp_path, **env)
        assert done.returncode == 1
        assert message in done.stderr and "Traceback" not in done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1


@in_checkout
def test_an_unbuilt_checkout_says_what_to_do(monkeypatch):
    monkeypatch.setattr(_build, "record", dict)
    monkeypatch.setattr(_build, "FOLDER", ROOT / "cfal_kernels" / "_lib")
    reason = _build.why_missing("cfal_torch_cpu")
    assert str(ROOT) in reason and "make install" in reason


@in_checkout
class TestPlan:
    """What setup.py decides; for CUDA operators, from a torch and an nvcc made up here."""

    @pytest.fixture
    def setup(self, monkeypatch):
        pytest.importorskip("setuptools")
        spec = importlib.util.spec_from_file_location("setup_under_test", ROOT / "setup.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setattr("setuptools.setup", lambda **_: None)
        spec.loader.exec_module(module)
        for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "CFAL_CUDA_ARCHS"):
            monkeypatch.delenv(name, raising=False)
        return module

    def plan(self, setup, tmp_path, mode, cuda: str):
        (tmp_path / "version.py").write_text(f"__version__ = '2.11.0'\ncuda: str = {cuda}\n")
        build = setup.NativeBuild(mode, "0.1.0", tmp_path)
        build.record["torch_headers"] = "2.11.0"
        build.plan_cuda(tmp_path)
        return build

    def nvcc(self, tmp_path, monkeypatch, release: str):
        tool = tmp_path / "nvcc"
        tool.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("CUDACXX", str(tool))
        return str(tool)

    def test_cpu_builds_leave_it_out(self, setup, tmp_path):
        build = self.plan(setup, tmp_path, "cpu", "'13.0'")
        assert not build.wanted and "CFAL_BUILD=cpu" in build.record["reasons"]["cfal_torch_cuda"]

    def test_auto_needs_a_torch_that_can_load_it(self, setup, tmp_path, monkeypatch):
        nvcc = self.nvcc(tmp_path, monkeypatch, "13.0")
        build = self.plan(setup, tmp_path, "auto", "None")
        assert not build.wanted
        assert "build without CUDA" in build.record["reasons"]["cfal_torch_cuda"]
        build = self.plan(setup, tmp_path, "auto", "'13.0'")
        assert build.wanted == ["cfal_torch_cuda"] and not build.record["reasons"]
        assert f"-DCMAKE_CUDA_COMPILER={nvcc}" in build.arguments
        assert self.plan(setup, tmp_path, "cuda", "None").wanted == ["cfal_torch_cuda"]

    def test_missing_or_old_nvcc_is_a_reason(self, setup, tmp_path, monkeypatch):
        monkeypatch.setenv("CUDACXX", "/nonexistent/nvcc")
        build = self.plan(setup, tmp_path, "auto", "'13.0'")
        assert build.missing() is None and not build.wanted
        assert "/nonexistent/nvcc is not there" in build.record["reasons"]["cfal_torch_cuda"]
        asked = self.plan(setup, tmp_path, "cuda", "'13.0'").missing()
        assert asked.startswith("cfal_torch_cuda was not built: no nvcc")
        self.nvcc(tmp_path, monkeypatch, "11.8")
        reason = self.plan(setup, tmp_path, "auto", "'13.0'").record["reasons"]["cfal_torch_cuda"]
        assert "is of CUDA 11.8; CUDA 12.8 or newer is needed" in reason

    def test_what_is_asked_for_must_be_there_but_for_the_shortcut(self, setup, tmp_path):
        build = setup.NativeBuild("cpu", "0.1.0", tmp_path)
        build.wanted += ["cfal_torch_cpu", "cfal_torch_autograd"]
        build.record["reasons"] = {"cfal_torch_autograd": "did not compile"}
        assert build.missing() is None
        build.record["reasons"]["cfal_torch_cpu"] = "did not compile"
        assert build.missing() == "cfal_torch_cpu was not built: did not compile"

    def test_one_that_cannot_be_configured_takes_no_other_with_it(
        self, setup, tmp_path, monkeypatch
    ):
        without = "-DCMAKE_DISABLE_FIND_PACKAGE_Python=ON"
        monkeypatch.setenv("CFAL_CMAKE_ARGS", without)
        build = setup.NativeBuild("cpu", "0.1.0", tmp_path)
        build.plan()
        if set(build.wanted) != {"cfal_torch_cpu", "cfal_torch_autograd", "_numpy_door"}:
            pytest.skip(f"not all objects can be built here: {build.record['reasons']}")
        configured = build.succeeding(build.configure, "did not configure", build.wanted)
        assert configured == ["cfal_torch_cpu"]
        for target in ("cfal_torch_autograd", "_numpy_door"):
            reason = build.record["reasons"][target]
            assert reason.startswith("did not configure: ") and "Python" in reason
        cache = (build.work / "CMakeCache.txt").read_text()  # of the last run: what is built next
        assert "CFAL_TORCH_CPU:BOOL=ON" in cache and "CFAL_NUMPY_DOOR:BOOL=OFF" in cache

    def test_architectures(self, setup, tmp_path, monkeypatch):
        self.nvcc(tmp_path, monkeypatch, "13.0")
        monkeypatch.setenv("CFAL_CUDA_ARCHS", "90 100")
        build = self.plan(setup, tmp_path, "auto", "'13.0'")
        assert "-DCFAL_CUDA_ARCHS=90;100" in build.arguments
        monkeypatch.setenv("CFAL_CUDA_ARCHS", "hopper")
        with pytest.raises(SystemExit, match="CFAL_CUDA_ARCHS='hopper' is no list"):
            self.plan(setup, tmp_path, "auto", "'13.0'")
