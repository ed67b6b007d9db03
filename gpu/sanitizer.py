"""compute-sanitizer over a few small steps of each backend: memcheck and racecheck.

Results go to sanitizer.txt under GPU_OUT. Exit status: 0 clean, 1 findings or a failure, 3 no tool.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from machine import ROOT, find_tool

TOOLS = ("memcheck", "racecheck")
FOUND = 9  # the tool's exit status where it found something
SECONDS = 240
CANNOT_RUN = 3


def main() -> int:
    backends = sys.argv[1:]
    tool = find_tool("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer is not on PATH, in CUDA_HOME or in /usr/local/cuda")
        return CANNOT_RUN
    out = Path(os.environ["GPU_OUT"])
    out.mkdir(parents=True, exist_ok=True)
    report = out / "sanitizer.txt"
    report.write_text("")
    environment = {
        **os.environ,
        # Every tensor in an allocation of its own: an access beyond it is then an error.
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }
    # All at once: each spends most of its time starting and compiling.
    runs = []
    for backend in backends:
        for name in TOOLS:
            command = [
                tool, "--tool", name, "--error-exitcode", str(FOUND), "--print-limit", "20",
                sys.executable, str(ROOT / "gpu" / "steps.py"), backend, "--small",
            ]  # fmt: skip
            path = out / f"sanitizer-{backend}-{name}.log"
            with path.open("w") as file:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
                )
            runs.append((backend, name, process, path))
    failed = False
    limit = min(SECONDS, float(os.environ.get("GPU_SECONDS", "inf")) - 10)
    deadline = time.monotonic() + limit
    for backend, name, process, path in runs:
        try:
            status = process.wait(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            status = f"no end in {limit:.0f} s"
        text = path.read_text(errors="replace")
        path.unlink()
        with report.open("a") as file:
            file.write(f"== {name} of {backend}: exit status {status}\n{text}\n")
        verdict = {0: "clean", FOUND: "FOUND ERRORS"}.get(status, f"did not run through ({status})")
        summary = [x.strip("= ") for x in text.splitlines() if "SUMMARY" in x]
        print(f"{name} of {backend}: {verdict}; {'; '.join(summary) or text.strip()[-200:]}")
        failed |= status != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
