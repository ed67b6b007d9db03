"""A run over two processes, as `cfal train --devices 2` starts it, and as torchrun does."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("safetensors")

import torch.distributed  # noqa: E402

from cfal_experiments.errors import InputError  # noqa: E402
from cfal_experiments.training import checkpoints, configuration, export, processes  # noqa: E402
from cfal_experiments.training.config import TrainingConfig  # noqa: E402
from harness import config_for, write_folder  # noqa: E402
from support_kernels import same_package  # noqa: E402

CFAL = ["-m", "cfal_experiments.cli", "train", "--config", "two.yaml", "-o", "run"]
LAUNCHES = {
    "devices": [*CFAL, "--devices", "2"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *CFAL],
}


def launch(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=same_package(), capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("launcher", LAUNCHES)
def test_two_processes_share_every_batch_and_write_one_run(tmp_path: Path, launcher: str):
    config = config_for(write_folder(tmp_path / "images", per_class=20), epochs=1)
    config.model.name = "alexnet32"
    configuration.save(config, tmp_path / "two.yaml")
    done = launch(tmp_path, LAUNCHES[launcher])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best of 1 epochs") == 1
    assert configuration.load(tmp_path / "run" / "config.yaml").training.devices == 2
    state = checkpoints.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    lines = (tmp_path / "run" / "split.csv").read_text().splitlines()
    images = sum(line.endswith(",train") for line in lines)
    # Each process takes half of the images, in batches of half the size.
    assert state["global_step"] == math.ceil(math.ceil(images / 2) / 8)
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 1
    _, description = export.load(tmp_path / "run" / "model.safetensors")
    assert sum(description.class_counts) == images


def test_another_number_of_processes_than_torchrun_has_started_is_refused(monkeypatch):
    training = TrainingConfig(devices=2)
    processes.settle(training)  # without torchrun: as configured
    assert (training.devices, processes.nodes()) == (2, 1)
    launched = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="4 processes"):
        processes.settle(training)
    training.devices = 1
    processes.settle(training)
    assert (training.devices, processes.nodes()) == (4, 2)
