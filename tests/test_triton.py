"""The Triton backend where it cannot serve, and its kernels under the interpreter.

The interpreter must be on before triton is imported, so those tests run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cfal_kernels as cfal
from cfal_kernels import _regime
from cfal_kernels.triton import availability
from support import problem
from support_kernels import same_package

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def test_import_does_not_import_triton():
    code = "import sys, cfal_kernels.backends; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@needs_triton
def test_reasons():
    facts = (torch.float32, torch.float32)
    assert "TRITON_INTERPRET" in availability.refuses("cpu", *facts, _regime.FEW)
    assert "TRITON_INTERPRET" in availability.refuses("cpu", *facts, _regime.MANY)
    assert availability.refuses("meta", *facts, _regime.MANY) == ""
    with pytest.raises(RuntimeError, match="backend='triton' cannot serve.*TRITON_INTERPRET"):
        cfal.cfal_loss(*problem(), backend="triton")


def interpreted(*arguments: str) -> str:
    """Output of a pytest run under the interpreter; fails with it unless every test passes."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    env = same_package(TRITON_INTERPRET="1", CFAL_GATES_OF="triton-interpreted")
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("file", ["triton_interpreted.py", "triton_many_interpreted.py"])
def test_kernels_interpreted(file):
    assert " passed" in interpreted(str(HERE / file))


@pytest.mark.slow
@needs_triton
def test_oracle_vectors_interpreted():
    few = "triton-few and (test_mean or test_rows or test_diversity)"
    many = "triton-many and (test_rows or test_diversity) and (c01 or c03 or x02 or x04)"
    selected = f"({few}) or ({many})"
    output = interpreted(str(HERE / "test_kernels_oracle.py"), "-k", selected)
    assert " passed" in output or " skipped" in output
