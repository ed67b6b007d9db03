"""The `cfal` command: quick to list itself, one line per error, status 2."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("jsonargparse")

from cfal_experiments.cli import main as cli  # noqa: E402
from support_kernels import same_package  # noqa: E402


def test_help_is_quick_and_imports_no_torch():
    code = (
        "import sys; from cfal_experiments.cli.main import main; main(['--help']); "
        "sys.exit('torch' in sys.modules or 'jsonargparse' in sys.modules)"
    )
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], env=same_package(), capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - begin)
        assert done.returncode == 0, done.stderr
    assert "usage: cfal" in done.stdout
    assert min(seconds) < 0.5


def test_every_command_that_is_listed_has_a_help(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            cli.main([*name.split(), "--help"])
        assert ended.value.code == 0
        assert f"usage: cfal {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["cfal trian", "cfal train"]),
        (["data", "chek"], ["data chek", "cfal data check"]),
        (["train", "--config", "nowhere"], ["nowhere", "presets list"]),
        (["train", "--loss.sigmo", "1"], ["loss.sigmo"]),
        (["train", "--data", "no/such/folder"], ["no/such/folder"]),
        (["train", "--data", "x", "--seed", "-1"], ["seeds.init", "at least 0"]),
        (["train", "--data", "x", "--devices", "0"], ["training.devices", "at least 1"]),
        (["plot", "weights", "no/such/folder"], ["no/such/folder"]),
        (["plot", "features", "no/such/run"], ["no/such/run", "not a run"]),
        (["train", "--resume", "no/such/run"], ["no/such/run", "not a run"]),
        (["train", "--resume", "run", "--loss.sigma", "3"], ["--loss.sigma", "--resume"]),
        (["data", "check", "no/such/folder"], ["no/such/folder"]),
        (["data", "fetch", "imagenet", "--to", "x"], ["imagenet", "pathmnist"]),
        (
            ["compare", "--configs", "idc_cfal", "--ensemble", "idc_focal", "--data", "x"]
            + ["-o", "y"],
            ["--ensemble", "idc_focal"],
        ),
    ],
)
def test_a_mistake_is_one_line_with_status_2(capsys, tmp_path: Path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert all(word in error for word in words), error
    assert not any(tmp_path.iterdir())


def test_presets_are_listed(capsys):
    assert cli.main(["presets", "list"]) == 0
    assert "idc_cfal " in capsys.readouterr().out
