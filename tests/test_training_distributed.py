"""A run over two processes, as `cfal train --devices 2` starts it."""

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

from cfal_experiments.training import checkpoints, configuration, export  # noqa: E402
from harness import config_for, write_folder  # noqa: E402
from support_kernels import same_package  # noqa: E402


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_processes_share_every_batch_and_write_one_run(tmp_path: Path):
    config = config_for(write_folder(tmp_path / "images", per_class=20), epochs=1)
    config.model.name = "alexnet32"
    config.training.devices = 2
    configuration.save(config, tmp_path / "two.yaml")
    command = [sys.executable, "-m", "cfal_experiments.cli", "train", "--config", "two.yaml"]
    done = subprocess.run(
        [*command, "-o", "run"], cwd=tmp_path, env=same_package(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best of 1 epochs") == 1
    state = checkpoints.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    lines = (tmp_path / "run" / "split.csv").read_text().splitlines()
    images = sum(line.endswith(",train") for line in lines)
    # Each process takes half of the images, in batches of half the size.
    assert state["global_step"] == math.ceil(math.ceil(images / 2) / 8)
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 1
    _, description = export.load(tmp_path / "run" / "model.safetensors")
    assert sum(description.class_counts) == images
