"""A run that is killed and resumed ends as if nothing had happened, to the bit."""

from __future__ import annotations

import csv
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("safetensors")

import torch  # noqa: E402

from cfal_experiments.training import checkpoints, configuration, run  # noqa: E402
from cfal_experiments.training.config import Config  # noqa: E402
from harness import config_for, write_folder  # noqa: E402

# Without compiled kernels the reference serves, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning")

EPOCHS = 12
KILLS = 5


@pytest.fixture(scope="module")
def server() -> multiprocessing.context.ForkServerContext:
    """Processes that start in a moment: forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cfal_experiments.training.run", "lightning.pytorch"])
    return context


def finish(server: multiprocessing.context.ForkServerContext, config: Config, folder: Path) -> None:
    process = server.Process(target=run.train, args=(config, folder), kwargs={"quiet": True})
    process.start()
    process.join(120)
    assert process.exitcode == 0


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return [{**row, "seconds": ""} for row in csv.DictReader(stream)]


def assert_same_run(folder: Path, other: Path) -> None:
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert rows_of(folder) == rows_of(other)
    for name in ("last.ckpt", "best.ckpt"):
        weights, others = (
            checkpoints.read(each / "checkpoints" / name)["state_dict"] for each in (folder, other)
        )
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[key], others[key]) for key in weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"sigma": "auto", "init": "class-means"}, {"loss": "cross-entropy"}]
)
def test_killed_at_any_moment_and_resumed_ends_with_the_same_bits(server, tmp_path: Path, options):
    config = config_for(write_folder(tmp_path / "images"), epochs=EPOCHS, **options)
    config.training.patience = EPOCHS
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(server, config, whole)
    draw = random.Random(options.get("loss", "cfal"))
    statuses, seen = [], 0
    for _ in range(KILLS):
        begun = (killed / "config.yaml").is_file()
        target, first = (run.resume, killed) if begun else (run.train, config)
        arguments = (first,) if begun else (first, killed)
        process = server.Process(target=target, args=arguments, kwargs={"quiet": True})
        process.start()
        # Wait for one more epoch than before, so that the kills are spread over the run.
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if (killed / "metrics.csv").is_file() and len(rows_of(killed)) > seen:
                break
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.04))
        process.kill()
        process.join()
        seen = len(rows_of(killed))
        statuses.append(process.exitcode)
    run.resume(killed, quiet=True)
    assert statuses.count(-signal.SIGKILL) >= 2
    assert_same_run(killed, whole)


def test_a_kill_before_the_first_epoch_leaves_a_run_that_can_be_resumed(tmp_path: Path):
    config = config_for(write_folder(tmp_path / "images"), epochs=1)
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    run.train(config, whole, quiet=True)
    configuration.save(config, begun / "config.yaml")  # the first file of a run, and here the last
    run.resume(begun, quiet=True)
    assert_same_run(begun, whole)
    assert (begun / "split.csv").read_bytes() == (whole / "split.csv").read_bytes()
