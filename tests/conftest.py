"""Fixtures for every test file; `oracle` and `support` beside this file hold the shared helpers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# pytest's importlib mode leaves sys.path alone, and the helpers are plain modules.
sys.path.insert(0, str(Path(__file__).parent))

import pytest  # noqa: E402
import torch  # noqa: E402

from cfal_kernels import diagnostics, ops  # noqa: E402
from support import BACKENDS  # noqa: E402
from support_kernels import KERNELS  # noqa: E402


def pytest_collection_modifyitems(items):
    """The slow ones first: no process of several has one left when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    """Each backend that runs here in turn."""
    return request.param


@pytest.fixture(autouse=True)
def fresh_diagnostics(monkeypatch):
    """Every test sees one-time warnings as a new process would.

    The fallback of a build without kernels is announced already, except to the test about it.
    """
    said = {"fallback:cpu"} if ops.unavailable else set()
    monkeypatch.setattr(diagnostics, "_said", said)
    monkeypatch.setattr(diagnostics, "_silent", False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def sound_device():
    """A test that leaves the device unusable ends its process, so that no other test is blamed."""
    yield
    if KERNELS[0].device == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"the device is lost: {error}", file=sys.__stderr__, flush=True)
            os._exit(70)
