"""Decides what can be built on this machine, drives CMake and Ninja, records the outcome.

Sources and flags stand in CMakeLists.txt. The outcome goes to cfal_kernels/_lib/build.json, from
where `cfal_kernels.explain` and `cfal_kernels.build_info` tell why an object is missing.

Environment: CFAL_BUILD=auto|none|cpu|cuda, CFAL_TORCH_DIR (the torch package to build against,
where the search does not find it), CXX, CUDACXX, CFAL_CUDA_ARCHS (as in "80;90"), MAX_JOBS, and
CFAL_CMAKE_ARGS (added to CMake's command).
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "none", "cpu", "cuda")
TORCH_CPU = "cfal_torch_cpu"
TORCH_CUDA = "cfal_torch_cuda"
TORCH_AUTOGRAD = "cfal_torch_autograd"
NUMPY_DOOR = "_numpy_door"
OPTIONS = {
    TORCH_CPU: "CFAL_TORCH_CPU",
    TORCH_CUDA: "CFAL_TORCH_CUDA",
    TORCH_AUTOGRAD: "CFAL_TORCH_AUTOGRAD",
    NUMPY_DOOR: "CFAL_NUMPY_DOOR",
}
OLDEST_TORCH = (2, 10)
OLDEST_NVCC = (12, 8)  # the first that knows sm_100
GIB_PER_JOB = 2

NO_TORCH = (
    "no torch was found at build time; install torch>=2.10 first, then build again with pip "
    "install --force-reinstall --no-deps (a tool that builds in an environment of its own, as uv "
    "and build do, needs --no-build-isolation, or CFAL_TORCH_DIR=<site-packages>/torch)"
)
NO_PYTHON_HEADERS = "no Python.h; install the headers of Python (python3-dev)"


def build_mode() -> str:
    mode = os.environ.get("CFAL_BUILD") or "auto"
    if mode not in MODES:
        sys.exit(f"error: CFAL_BUILD={mode!r} is none of {', '.join(MODES)}")
    return mode


def say(message: str) -> None:
    print(f"cfal-kernels: {message}", file=sys.stderr, flush=True)


def site_directories():
    """Where packages of the target environment may lie.

    An isolated build hides them from sys.path, but its interpreter is the target's: the scheme
    paths still point at the target. Build tools that make an environment of their own (uv, build)
    leave at most VIRTUAL_ENV or CONDA_PREFIX behind.
    """
    paths = sysconfig.get_paths()
    yield from (paths["platlib"], paths["purelib"])
    yield from site.getsitepackages()
    in_venv = sys.prefix != sys.base_prefix
    config = Path(sys.prefix, "pyvenv.cfg")
    if in_venv and config.is_file():
        shared = re.search(r"(?im)^include-system-site-packages\s*=\s*true", config.read_text())
        if not shared:
            yield from foreign_directories()
            return
        yield from site.getsitepackages([sys.base_prefix, sys.base_exec_prefix])
    yield site.getusersitepackages()
    yield from foreign_directories()


def foreign_directories():
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := os.environ.get(name):
            yield from map(str, sorted(Path(prefix).glob("lib/python3*/site-packages")))
            yield str(Path(prefix, "Lib", "site-packages"))


def find_torch() -> tuple[Path | None, str]:
    """The directory of torch and its version, or None and the reason; torch is not imported."""
    if named := os.environ.get("CFAL_TORCH_DIR"):
        candidates = [Path(named)]
        if not Path(named, "version.py").is_file():
            sys.exit(f"error: CFAL_TORCH_DIR={named} is not a directory of the torch package")
    else:
        spec = importlib.util.find_spec("torch")
        candidates = [Path(spec.origin).parent] if spec and spec.origin else []
        candidates += [Path(directory, "torch") for directory in site_directories()]
    reason = NO_TORCH
    for candidate in candidates:
        try:
            text = (candidate / "version.py").read_text()
        except OSError:
            continue
        found = re.search(r"__version__ = ['\"]((\d+)\.(\d+)[^'\"]*)", text)
        if found and (int(found[2]), int(found[3])) >= OLDEST_TORCH:
            return candidate, found[1]
        version = found[1] if found else "of unknown version"
        reason = f"torch {version} is too old for the stable ABI; torch>=2.10 is needed"
    return None, reason


def find_program(name: str) -> str | None:
    """A working program of this environment, which need not be activated, or else on PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    for directory in path.split(os.pathsep):
        program = shutil.which(name, path=directory)
        # A shim of a version manager can be there and still fail.
        if program and not subprocess.run([program, "--version"], capture_output=True).returncode:
            return program
    return None


def find_compiler() -> tuple[str | None, str]:
    """The C++ compiler, or None and the reason."""
    if named := os.environ.get("CXX"):
        if shutil.which(shlex.split(named)[0]):
            return named, ""
        return None, f"no C++ compiler at build time: CXX={named} is not there"
    for name in ("c++", "g++", "clang++", "cl"):
        if shutil.which(name):
            return name, ""
    return None, "no C++ compiler found at build time (looked for c++, g++, clang++ and $CXX)"


def find_nvcc() -> tuple[str | None, str]:
    """The CUDA compiler, or None and the reason."""
    named = os.environ.get("CUDACXX")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [named] if named else ["nvcc", *(f"{home}/bin/nvcc" for home in homes if home)]
    for candidate in candidates:
        nvcc = shutil.which(candidate)
        if nvcc is None:
            continue
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
        found = re.search(r"release (\d+)\.(\d+)", done.stdout)
        if found and (int(found[1]), int(found[2])) >= OLDEST_NVCC:
            return nvcc, ""
        version = f"{found[1]}.{found[2]}" if found else "of unknown version"
        oldest = ".".join(map(str, OLDEST_NVCC))
        return None, f"{nvcc} is of CUDA {version}; CUDA {oldest} or newer is needed"
    where = f"CUDACXX={named} is not there" if named else "install the CUDA toolkit, or set CUDACXX"
    return None, f"no nvcc found at build time; {where}"


def torch_is_for_cuda(torch: Path) -> bool:
    """Whether the torch package in this directory is a CUDA build."""
    text = (torch / "version.py").read_text()
    return re.search(r"(?m)^cuda\b[^=]*=\s*['\"]", text) is not None


def cuda_architectures() -> str | None:
    """CFAL_CUDA_ARCHS as CMake takes it, or None for its default."""
    text = os.environ.get("CFAL_CUDA_ARCHS")
    if not text:
        return None
    archs = re.split(r"[;, ]+", text.strip())
    if not all(re.fullmatch(r"\d{2,3}[af]?", arch) for arch in archs):
        sys.exit(f"error: CFAL_CUDA_ARCHS={text!r} is no list of architectures such as '80;90'")
    return ";".join(archs)


def jobs() -> int:
    """Compiler processes at once: the least of the cores, MAX_JOBS, and what fits the memory."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    if wanted := os.environ.get("MAX_JOBS"):
        if not wanted.isdigit() or int(wanted) < 1:
            sys.exit(f"error: MAX_JOBS={wanted!r} is not a positive number")
        count = min(count, int(wanted))
    limits = []
    try:
        meminfo = Path("/proc/meminfo").read_text()
        limits.append(int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo)[1]) * 1024)
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, TypeError, ValueError):
        pass  # not Linux, or no limit ("max")
    return max(1, min([count] + [limit // (GIB_PER_JOB << 30) for limit in limits]))


class BuildFailed(Exception):
    """Carries the one line that says why."""


def run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(shlex.join(command), done.stdout, sep="\n", flush=True)
    if done.returncode:
        raise BuildFailed(first_error(done.stdout) or f"{command[0]} exited with {done.returncode}")


def first_error(log: str) -> str:
    """The first error in the output of CMake or a compiler, on one line."""
    lines = log.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("CMake Error"):
            # The text stands indented below; the line itself only says where in CMake's files.
            text = itertools.takewhile(lambda t: not t or t.startswith("  "), lines[i + 1 :])
            words = " ".join(text).split() or line.split()
            return " ".join(words)[:300]
        if re.search(r"\b(error|Error)\b", line):
            return line.replace(f"{ROOT}{os.sep}", "").strip()
    return lines[-1].strip() if lines else ""


class NativeBuild:
    """One run of CMake: what is wanted, what came out, and why the rest did not."""

    def __init__(self, mode: str, version: str, build_base: Path):
        self.build_base = build_base
        self.wanted: list[str] = []
        self.record = {
            "version": version,
            "mode": mode,
            "objects": {},
            "reasons": {},
            "compiler": None,
            "flags": None,
            "isa": [],
            "torch_headers": None,
            # What distinguishes a Python's extensions: version, threading, platform.
            "extension_suffix": importlib.machinery.EXTENSION_SUFFIXES[0],
            "python": sysconfig.get_platform() + " " + sys.version.split()[0],
        }
        self.arguments = ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
        self.cmake = ""

    def plan(self) -> None:
        """Fills `wanted`; whatever cannot be built here gets its reason."""
        reasons = self.record["reasons"]
        if self.record["mode"] == "none":
            reasons.update(dict.fromkeys(OPTIONS, "the package was built with CFAL_BUILD=none"))
            return
        compiler, reason = find_compiler()
        cmake = find_program("cmake")
        if compiler and not cmake:
            reason = "no CMake found; pip install cmake ninja"
        if reason:
            reasons.update(dict.fromkeys(OPTIONS, reason))
            return
        self.cmake = cmake
        self.arguments.append(f"-DCMAKE_CXX_COMPILER={shutil.which(compiler) or compiler}")
        if ninja := find_program("ninja"):
            self.arguments += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        torch, note = find_torch()
        if torch:
            self.record["torch_headers"] = note
            self.want(TORCH_CPU, f"-DCFAL_TORCH_DIR={torch}")
            self.plan_cuda(torch)
        else:
            reasons.update(dict.fromkeys((TORCH_CPU, TORCH_AUTOGRAD, TORCH_CUDA), note))
        has_python_headers = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
        if torch and has_python_headers:
            self.want(TORCH_AUTOGRAD)
        elif torch:
            reasons[TORCH_AUTOGRAD] = NO_PYTHON_HEADERS
        if not has_python_headers:
            reasons[NUMPY_DOOR] = NO_PYTHON_HEADERS
        elif importlib.util.find_spec("pybind11") is None:
            reasons[NUMPY_DOOR] = "no pybind11; pip install pybind11"
        else:
            import pybind11

            self.want(NUMPY_DOOR, f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
        self.arguments += shlex.split(os.environ.get("CFAL_CMAKE_ARGS", ""))

    def plan_cuda(self, torch: Path) -> None:
        """Wants the CUDA operators where they can be built, and loaded unless asked for."""
        reasons, mode = self.record["reasons"], self.record["mode"]
        if mode == "cpu":
            reasons[TORCH_CUDA] = "the package was built with CFAL_BUILD=cpu"
            return
        if mode == "auto" and not torch_is_for_cuda(torch):
            reasons[TORCH_CUDA] = (
                f"torch {self.record['torch_headers']} is a build without CUDA, which could not "
                f"load it; CFAL_BUILD=cuda compiles it all the same"
            )
            return
        nvcc, reason = find_nvcc()
        if nvcc is None:
            reasons[TORCH_CUDA] = reason
            return
        archs = cuda_architectures()
        chosen = [f"-DCFAL_CUDA_ARCHS={archs}"] if archs else []
        self.want(TORCH_CUDA, f"-DCMAKE_CUDA_COMPILER={nvcc}", *chosen)

    def want(self, target: str, *arguments: str) -> None:
        self.wanted.append(target)
        self.arguments += arguments

    @property
    def work(self) -> Path:
        """CMake's directory: one for each set of choices that its cache cannot change."""
        fixed = [a for a in self.arguments if a.startswith(("-G", "-DCMAKE_CXX_", "-DCMAKE_CUDA_"))]
        key = zlib.crc32(repr([fixed, os.environ.get("CFAL_CMAKE_ARGS")]).encode())
        name = f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}-{key:08x}"
        return (self.build_base / name).resolve()

    def run(self, destination: Path) -> None:
        """Builds what is wanted and installs it into `destination`, with the record beside it."""
        shutil.rmtree(destination, ignore_errors=True)
        destination.mkdir(parents=True)
        if configured := self.succeeding(self.configure, "did not configure", self.wanted):
            self.record.update(json.loads((self.work / "facts.json").read_text()))
            for target in self.succeeding(self.compile, "did not compile", configured):
                run([self.cmake, "--install", str(self.work), "--component", target, "--strip",
                     "--prefix", str(destination)])  # fmt: skip
                [library] = (p for p in destination.iterdir() if p.name.startswith(target))
                self.record["objects"][target] = library.name
        text = json.dumps(self.record, indent=2) + "\n"
        (destination / "build.json").write_text(text)

    def succeeding(self, step, failed: str, targets: list[str]) -> list[str]:
        """The targets for which step([*targets]) works; one that fails takes no other with it."""
        succeeded: list[str] = []
        for attempt in ([targets] if len(targets) > 1 else []) + [[t] for t in targets]:
            try:
                step([*succeeded, *attempt])
            except BuildFailed as failure:
                if len(attempt) == 1:
                    self.record["reasons"][attempt[0]] = f"{failed}: {failure}"
                continue
            succeeded += attempt
            if succeeded == targets:
                return succeeded
        if succeeded:
            step(succeeded)  # the last attempt may have left what these cannot go on from
        return succeeded

    def configure(self, targets: list[str]) -> None:
        options = (f"-D{name}={'ON' if t in targets else 'OFF'}" for t, name in OPTIONS.items())
        command = [self.cmake, "-S", str(ROOT), "-B", str(self.work), *self.arguments, *options]
        try:
            run(command)
        except BuildFailed:
            # A cache made by another CMake, generator or compiler: start afresh, once.
            if not (self.work / "CMakeCache.txt").is_file():
                raise
            shutil.rmtree(self.work)
            run(command)

    def compile(self, targets: list[str]) -> None:
        command = [self.cmake, "--build", str(self.work), "--parallel", str(jobs()), "--target"]
        run([*command, *targets])

    def missing(self) -> str | None:
        """The first object that CFAL_BUILD asked for and that is not there, with the reason."""
        reasons = self.record["reasons"]
        asked = {"cpu": [TORCH_CPU], "cuda": [TORCH_CPU, TORCH_CUDA]}.get(self.record["mode"])
        if asked:
            # The NumPy door is asked for only where Python.h and pybind11 are there. The autograd
            # function in C++ is a shortcut: the one in Python stands in for it.
            for target in dict.fromkeys([*asked, *self.wanted]):
                if target in reasons and target != TORCH_AUTOGRAD:
                    return f"{target} was not built: {reasons[target]}"
        return None


class BuildPackage(build_py):
    """Copies the Python files, then builds the objects beside them."""

    def run(self) -> None:
        build = self.get_finalized_command("build")
        if not self.editable_mode:
            # build/lib outlives a build: a file deleted from the source would still be packed.
            for package in ("cfal_kernels", "cfal_experiments"):
                shutil.rmtree(Path(self.build_lib, package), ignore_errors=True)
        super().run()
        base = ROOT if self.editable_mode else Path(self.build_lib)
        native = NativeBuild(build_mode(), self.distribution.get_version(), Path(build.build_base))
        native.plan()
        if not native.missing():
            native.run(base / "cfal_kernels" / "_lib")
        if missing := native.missing():
            sys.exit(f"error: CFAL_BUILD={native.record['mode']}, but {missing}")
        reasons = native.record["reasons"]
        if reasons and native.record["mode"] != "none":
            for target, reason in reasons.items():
                say(f"{target} was not built: {reason}")
            say("the install goes on without; `python -m cfal_kernels.info` repeats the reasons")


class BinaryDistribution(Distribution):
    """A wheel with compiled objects serves one platform and, for the NumPy door, one Python."""

    def has_ext_modules(self) -> bool:
        return build_mode() != "none" and find_compiler()[0] is not None


setup(distclass=BinaryDistribution, cmdclass={"build_py": BuildPackage})
