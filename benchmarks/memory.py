"""Peak extra memory of one step, in bytes: measured in a process of its own.

The process runs with a counter in front of malloc (heap.c). After one whole step, which loads
libraries, starts threads and compiles what there is to compile, the gradients are dropped and the
count starts: the result is the highest number of bytes held at once during forward + backward,
less what was held before (the inputs) and less the two or three gradients that remain. Buffers that
the BLAS keeps between calls are not counted where it took them in the first step.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def build_counter(folder: Path) -> tuple[Path | None, str]:
    """The compiled counter, or None and the reason why there is none."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not sys.platform.startswith("linux") or compiler is None:
        return None, "the malloc counter needs Linux with glibc and a C compiler"
    library = folder / "heap.so"
    done = subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", str(HERE / "heap.c"), "-o", str(library)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return None, f"heap.c does not compile: {done.stderr.splitlines()[0]}"
    return library, ""


def peak_extra_bytes(counter: Path, shapes: str, index: int, provider: str, threads: int) -> int:
    """Measures one provider on one case of `shapes` in a fresh process.

    Raises:
        RuntimeError: the process failed; the message ends with its last line.
    """
    command = [sys.executable, str(HERE / "memory.py"), shapes, str(index), provider, str(threads)]
    environment = {**os.environ, "LD_PRELOAD": str(counter)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"no peak memory of {provider}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(shapes: str, index: int, provider: str, threads: int) -> int:
    import torch

    from providers import make_step
    from shapes import SHAPES, make_inputs

    torch.set_num_threads(threads)
    heap = ctypes.CDLL(None)
    heap.heap_restart.restype = heap.heap_peak.restype = ctypes.c_longlong
    step = make_step(provider, make_inputs(SHAPES[shapes][index]))
    step.both()
    step.zero_grad()
    gc.collect()
    before = heap.heap_restart()
    step.both()
    peak = heap.heap_peak()
    grads = [leaf.grad for leaf in step.inputs[:3] if leaf.grad is not None]
    return max(0, peak - before - sum(g.numel() * g.element_size() for g in grads))


if __name__ == "__main__":
    del os.environ["LD_PRELOAD"]  # the compiler processes of torch.compile run without it
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
