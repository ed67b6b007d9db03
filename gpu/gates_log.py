"""pytest plugin: writes each outcome as it comes, and leaves out what has passed before.

GATES_LOG names the file of outcomes, one JSON object a line; GATES_DONE a file of node ids to leave
out. A run that is cut off has lost nothing, and the next one goes on from there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_LOG = Path(os.environ["GATES_LOG"])
_outcomes: dict[str, dict] = {}


def _write(entry: dict) -> None:
    with _LOG.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    done = Path(os.environ.get("GATES_DONE") or os.devnull).read_text().splitlines()
    passed = set(done)
    left = [item for item in items if item.nodeid not in passed]
    if len(left) < len(items):
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid in passed])
        items[:] = left


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported, or that skips itself as a whole."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        _write({"id": report.nodeid, "outcome": "failed", "message": _message(report)})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Runs where the reports end up: in the controller, if there are workers."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    entry = _outcomes.setdefault(report.nodeid, {"id": report.nodeid, "outcome": "passed"})
    if report.failed:
        entry |= {"outcome": "failed", "message": _message(report)}
    elif report.skipped and entry["outcome"] != "failed":
        entry |= {"outcome": "skipped", "message": _message(report)}
    crashed = report.when == "???"  # xdist's word for a worker that died in the test
    if report.when == "teardown" or crashed:
        entry["seconds"] = round(report.duration, 3)
        _write(_outcomes.pop(report.nodeid))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _write({"finished": int(exitstatus)})


def _message(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What one line can tell: the error, or the reason of a skip."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])[:300]
    lines = [x for x in str(report.longrepr).splitlines() if x.startswith("E ")]
    text = lines[0][1:] if lines else (str(report.longrepr).splitlines() or [""])[-1]
    return text.strip()[:300]
