"""Runs the gates of one backend on the device, and records the regimes that passed all of theirs.

    python gpu/gates.py triton          every gate that marks itself `gpu`
    python gpu/gates.py dry -k tiles    the same machinery on the CPU, in a selection

Exit status: 0 all passed, 1 some failed, 3 the backend is not there, 4 GPU_SECONDS ran out before
the end: what has passed is kept, and the next run goes on from there.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine
from machine import ROOT

#: The gates of the CPU kernels that take any implementation, and those that need a device.
TESTS = (
    "tests/test_kernels_oracle.py",
    "tests/test_kernels_gradcheck.py",
    "tests/test_kernels_accuracy.py",
    "tests/test_kernels_shapes.py",
    "tests/test_kernels_properties.py",
    "tests/gpu",
)
MOST_WORKERS = 14  # most of the time goes into compiling, on the CPU
SECONDS_A_TEST = 150
SECONDS_TO_REPORT = 20
CANNOT_RUN, CUT_OFF = 3, 4


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backend", choices=("cuda", "triton", "dry"))
    parser.add_argument("-k", dest="select", default="", help="pytest's -k; no pass is recorded")
    parser.add_argument("--tests", nargs="*", default=list(TESTS), help="files; no pass either")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + float(os.environ.get("GPU_SECONDS", "inf")) - SECONDS_TO_REPORT
    out = Path(os.environ["GPU_OUT"])
    out.mkdir(parents=True, exist_ok=True)
    facts = machine.facts()
    if options.backend != "dry" and (reason := why_absent(options.backend)):
        print(reason)
        return CANNOT_RUN
    limit = [] if smoke(options.backend) else ["--maxfail=30"]
    log = out / f"gates-{options.backend}.jsonl"
    status = run_pytest(options, log, facts, limit, deadline)
    outcomes, finished = read(log, key(facts))
    report(outcomes, finished)
    failed = [x for x in outcomes.values() if x["outcome"] == "failed"]
    complete = finished and status == 0 and not failed
    whole = not options.select and tuple(options.tests) == TESTS
    if finished and status in (0, 1) and whole and options.backend != "dry":
        record(options.backend, outcomes, facts, out)
    if complete:
        return 0
    return CUT_OFF if status == CUT_OFF and not failed else 1


def why_absent(backend: str) -> str:
    """Why the backend cannot serve a tensor of the device, or ""."""
    code = (
        "import sys, torch, cfal_kernels as cfal\n"
        "f, w = torch.zeros(4, 8, device='cuda'), torch.zeros(3, 8, device='cuda')\n"
        "try: cfal.explain(f, w, backend=sys.argv[1])\n"
        "except RuntimeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, backend], capture_output=True, text=True)
    lines = done.stdout.strip() or done.stderr.strip() if done.returncode else done.stdout.strip()
    return lines.splitlines()[-1] if lines else ""


def smoke(backend: str) -> bool:
    """One step of each regime, for an answer within seconds."""
    command = [sys.executable, str(ROOT / "gpu" / "steps.py"), backend]
    if backend == "dry":
        command.append("--small")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        lines = (done.stdout + done.stderr).strip().splitlines()[-12:]
        fine = done.returncode == 0
    except subprocess.TimeoutExpired:
        lines, fine = ["no answer in 120 s"], False
    print(f"first steps of {backend}: {'ok' if fine else 'FAILED'}", *lines, sep="\n  ", flush=True)
    return fine


def most_workers() -> int:
    """GPU_WORKERS as a number; exits with a message where it is none."""
    text = os.environ.get("GPU_WORKERS") or str(MOST_WORKERS)
    if not text.isdigit() or int(text) == 0:
        sys.exit(f"error: GPU_WORKERS={text!r} is no number of processes")
    return int(text)


def run_pytest(
    options: argparse.Namespace, log: Path, facts: dict, limit: list[str], deadline: float
) -> int:
    """Runs what has not passed yet with these sources; returns pytest's exit status."""
    before, _ = read(log, key(facts))
    done = [name for name, entry in before.items() if entry["outcome"] == "passed"]
    folder = ROOT / "build" / "gpu"
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / f"done-{options.backend}.txt"
    listed.write_text("\n".join(done))
    with log.open("a") as file:
        file.write(json.dumps({"started": key(facts)}) + "\n")
    packages = facts["packages"]
    seconds = max(1.0, deadline - time.monotonic())
    command = [
        sys.executable, "-m", "pytest", *options.tests, "-m", "gpu", "-q", "-p", "gates_log",
        "-p", "no:cacheprovider", "--rootdir", str(ROOT), "--tb=short", *limit,
        # The options of pyproject.toml need plugins that may be missing here.
        "-o", "addopts=--import-mode=importlib -rfE",
    ]  # fmt: skip
    if packages["pytest_timeout"]:
        command += [f"--timeout={SECONDS_A_TEST}"]
    workers = min(most_workers(), os.cpu_count() or 1)
    if packages["xdist"] and workers > 1:
        command += ["-n", str(workers), "--max-worker-restart=40"]
    if options.select:
        command += ["-k", options.select]
    paths = [str(ROOT / "gpu"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "CFAL_GATES_OF": options.backend,
        "GATES_LOG": str(log),
        "GATES_DONE": str(listed),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # Every worker would start a pool of as many compilers as there are cores.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    begin = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        status = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
        print(f"stopped after {time.monotonic() - begin:.0f} s")
        return CUT_OFF
    # 5: nothing was left to run, which is no failure if something passed before.
    return 0 if status == 5 and done else status


def key(facts: dict[str, Any]) -> list[str]:
    """What an outcome depends on: outcomes of another key are forgotten."""
    return [facts["gates"], facts.get("gpu", "no GPU"), facts.get("torch", "")]


def read(log: Path, wanted: list[str]) -> tuple[dict[str, dict[str, Any]], bool]:
    """The last outcome of each test under this key, and whether the last run came to its end."""
    outcomes: dict[str, dict[str, Any]] = {}
    finished, of_these = False, False
    for line in log.read_text().splitlines() if log.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut off in the middle of a line
        if "started" in entry:
            of_these, finished = entry["started"] == wanted, False
        elif "finished" in entry:
            finished = entry["finished"] in (0, 1, 5)
        elif of_these:
            outcomes[entry["id"]] = entry
    return outcomes, finished


def report(outcomes: dict[str, dict[str, Any]], finished: bool) -> None:
    """Counts, and the first failures of each file."""
    count = collections.Counter(entry["outcome"] for entry in outcomes.values())
    files: dict[str, list[dict]] = {}
    for name, entry in outcomes.items():
        if entry["outcome"] == "failed":
            files.setdefault(name.split("::")[0], []).append(entry)
    for name, entries in files.items():
        print(f"{name}: {len(entries)} failed")
        for entry in entries[:6]:
            print(f"  {entry['id'].split('::', 1)[-1]}: {entry['message']}")
    counts = ", ".join(f"{count[word]} {word}" for word in ("passed", "failed", "skipped"))
    print(counts + ("" if finished else "; cut off before the end"))


def regimes_passed(backend: str, outcomes: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """The regimes that passed something and failed nothing; a failure of neither is one of both."""
    names = {regime: f"{backend}-{regime}" for regime in ("few", "many")}

    def found(outcome: str, name: str) -> bool:
        return any(e["outcome"] == outcome and name in e["id"] for e in outcomes.values())

    failed = [e["id"] for e in outcomes.values() if e["outcome"] == "failed"]
    if any(not any(name in test for name in names.values()) for test in failed):
        return ()
    passed = (regime for regime, name in names.items() if found("passed", name))
    return tuple(regime for regime in passed if not found("failed", names[regime]))


def record(backend: str, outcomes: dict, facts: dict[str, Any], out: Path) -> None:
    """Writes a pass into the package's record, and a copy of the record into the results."""
    from cfal_kernels import hardware

    regimes = regimes_passed(backend, outcomes)
    if not regimes:
        return
    count = collections.Counter(entry["outcome"] for entry in outcomes.values())
    toolchain = {"cuda": f"CUDA {facts['cuda']}", "triton": f"triton {facts['packages']['triton']}"}
    names = ("gpu", "compute_capability", "driver", "torch", "commit", "sources", "date")
    entry = hardware.Pass(
        regimes=regimes,
        **{name: facts[name] for name in names},
        toolchain=toolchain[backend],
        passed=count["passed"],
        skipped=count["skipped"],
    )
    hardware.append(backend, entry)
    (out / hardware.FILE.name).write_text(hardware.FILE.read_text())
    print(f"recorded for {backend}: {entry}")


if __name__ == "__main__":
    sys.exit(main())
