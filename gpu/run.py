"""One command for a machine with a GPU: builds, runs every gate, the sanitizers and the benchmarks.

    make gpu                                  everything
    make gpu GPU_PARTS=build,gates            some parts
    make gpu GPU_MINUTES=9                    within so many minutes, shared among the parts
    make gpu GPU_BACKENDS=triton PYTHON=python3.12

It runs on the machine's own Python, torch and compilers: no environment is made and nothing is
fetched. WHEELHOUSE names a folder of wheels for packages that are missing. Results are written as
they come to GPU_OUT (benchmarks/results/gpu), and a part that was cut off goes on where it stopped.

Exit status: 0 all parts passed, 1 some did not, 2 this machine cannot run them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import summary
from machine import ROOT, cuda_homes

BACKENDS = ("triton", "cuda")
#: Parts in their order, with their shares of the time and the group that also names them.
SHARES = {
    "build": 3.0,
    "gates-triton": 4.0,
    "gates-cuda": 2.5,
    "bench-few": 3.0,
    "bench-many": 3.0,
    "sanitizer": 2.0,
}
SECONDS_A_PART = 570.0
LEAST_SECONDS = 20.0
CANNOT_RUN, CUT_OFF = 3, 4


class Unusable(Exception):
    """Carries the one line that says what this machine lacks."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=os.environ.get("GPU_PARTS") or "all")
    parser.add_argument("--backends", default=os.environ.get("GPU_BACKENDS") or ",".join(BACKENDS))
    parser.add_argument("--minutes", type=float, default=minutes_of_environment())
    parser.add_argument("--quick", action="store_true", help="fewer shapes in the benchmarks")
    parser.add_argument("--dry", action="store_true", help="the machinery, on the CPU's kernels")
    options = parser.parse_args(arguments)
    out = Path(os.environ.get("GPU_OUT") or ROOT / "benchmarks" / "results" / "gpu").resolve()
    try:
        parts = chosen(options.parts, options.backends.split(","), options.dry)
        environment = prepare(out)
        facts = check_machine(environment, options.dry)
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = load(out, facts)
    begin = time.monotonic()
    for number, (name, command) in enumerate(parts):
        limit = SECONDS_A_PART
        if options.minutes is not None:
            left = 60.0 * options.minutes - (time.monotonic() - begin)
            following = sum(SHARES[other] for other, _ in parts[number:])
            limit = min(limit, left * SHARES[name] / following)
        quick = ["--quick"] if options.quick and name.startswith("bench") else []
        results["parts"][name] = run_part(name, [*command, *quick], limit, environment, out)
        save(out, results)
    text = summary.render(out)
    (out / "summary.md").write_text(text)
    print(f"\n{text}\nwritten to {out}")
    return 0 if all(results["parts"][name]["status"] == "passed" for name, _ in parts) else 1


def minutes_of_environment() -> float | None:
    """GPU_MINUTES as a number; exits with a message where it is none."""
    text = os.environ.get("GPU_MINUTES")
    try:
        return float(text) if text else None
    except ValueError:
        print(f"error: GPU_MINUTES={text!r} is no number of minutes", file=sys.stderr)
        raise SystemExit(2) from None


def chosen(text: str, backends: list[str], dry: bool) -> list[tuple[str, list[str]]]:
    """The parts asked for, in order, with their commands.

    Raises:
        Unusable: an unknown part or backend.
    """
    if unknown := set(backends) - set(BACKENDS):
        raise Unusable(f"no such backend: {', '.join(sorted(unknown))}; {', '.join(BACKENDS)} are")
    wanted = list(SHARES) if text == "all" else text.split(",")
    groups = {name.split("-")[0] for name in SHARES}
    if unknown := set(wanted) - set(SHARES) - groups:
        known = ", ".join(sorted({*SHARES, *groups}))
        raise Unusable(f"no such part: {', '.join(sorted(unknown))}; there are {known}")
    parts = []
    for name in SHARES:
        group, _, what = name.partition("-")
        if not {name, group} & set(wanted) or (what in BACKENDS and what not in backends):
            continue
        command = {
            "build": ["gpu/build.py"],
            "gates": ["gpu/gates.py", "dry" if dry else what],
            "bench": ["benchmarks/gpu/bench.py", "--shapes", what, *(["--dry"] if dry else [])],
            "sanitizer": ["gpu/sanitizer.py", *backends],
        }[group]
        parts.append((name, [sys.executable, *command]))
    return parts


def prepare(out: Path) -> dict[str, str]:
    """The environment of every part; makes the results folder, unpacks the wheelhouse."""
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GPU_OUT": str(out), "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)  # would run the Triton kernels on the CPU
    for home in cuda_homes()[:1]:
        environment["PATH"] = f"{environment.get('PATH', os.defpath)}{os.pathsep}{home / 'bin'}"
        environment.setdefault("CUDA_HOME", str(home))
    paths = [str(ROOT), str(ROOT / "python")]
    if house := os.environ.get("WHEELHOUSE"):
        paths.append(unpack(Path(house)))
    environment["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    for shared in (ROOT / "shared", ROOT.parent / "shared"):
        if (shared / "oracle").is_dir():
            environment.setdefault("CFAL_SHARED", str(shared))
    return environment


def unpack(house: Path) -> str:
    """Installs the wheels of a folder beside the build, offline."""
    wheels = sorted(map(str, house.glob("*.whl")))
    if not wheels:
        raise Unusable(f"WHEELHOUSE={house} holds no wheels")
    target = ROOT / "build" / "gpu" / "site"
    command = [
        sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile",
        "--upgrade", "--target", str(target), *wheels,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unusable(f"WHEELHOUSE={house}: {done.stderr.strip().splitlines()[-1]}")
    return str(target)


def check_machine(environment: dict[str, str], dry: bool) -> dict[str, Any]:
    """Facts of this machine.

    Raises:
        Unusable: there is no GPU that torch can use.
    """
    command = [sys.executable, str(ROOT / "gpu" / "machine.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Unusable(f"gpu/machine.py failed: {done.stderr.strip().splitlines()[-1]}")
    facts = json.loads(done.stdout.splitlines()[-1])
    if "error" in facts and not dry:
        raise Unusable(
            f"make gpu needs a CUDA device and a torch built for it: {facts['error']} (make gpu "
            f"PYTHON=... names another interpreter)"
        )
    print(summary.machine_line(facts))
    if missing := [name for name, version in facts["packages"].items() if version is None]:
        print(f"missing packages: {', '.join(missing)}")
    return facts


def load(out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Results of earlier parts, if they are of this machine and these sources."""
    try:
        results = json.loads((out / "results.json").read_text())
        same = all(results["machine"][x] == facts[x] for x in ("sources", "driver"))
    except (OSError, ValueError, KeyError):
        same = False
    return {"machine": facts, "parts": results["parts"] if same else {}}


def save(out: Path, results: dict[str, Any]) -> None:
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def run_part(
    name: str, command: list[str], limit: float, environment: dict[str, str], out: Path
) -> dict[str, Any]:
    """Runs one part in a process group of its own; its output is shown and kept in log.txt."""
    if limit < LEAST_SECONDS:
        print(f"=== {name}: no time left", flush=True)
        return {"status": "not run", "seconds": 0, "note": "no time left"}
    print(f"=== {name}: at most {limit:.0f} s", flush=True)
    begin = time.monotonic()
    environment = {**environment, "GPU_SECONDS": f"{limit:.0f}"}
    lines: list[str] = []
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    signal.signal(signal.SIGALRM, lambda *_: stop(process))
    signal.setitimer(signal.ITIMER_REAL, limit)
    with (out / "log.txt").open("a") as log:
        log.write(f"=== {name}\n")
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
            lines.append(line.rstrip())
    signal.setitimer(signal.ITIMER_REAL, 0)
    status = process.wait()
    seconds = time.monotonic() - begin
    word = {0: "passed", CANNOT_RUN: "cannot run", CUT_OFF: "cut off"}.get(status, "failed")
    note = next((line for line in reversed(lines) if line), "")
    if seconds >= limit:
        word, note = "cut off", f"after {limit:.0f} s; the next run goes on from there"
    print(f"=== {name}: {word} in {seconds:.0f} s", flush=True)
    return {"status": word, "seconds": round(seconds), "note": note[:300]}


def stop(process: subprocess.Popen) -> None:
    """Ends the part's own process group, kindly at first."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(timeout=8)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


if __name__ == "__main__":
    sys.exit(main())
