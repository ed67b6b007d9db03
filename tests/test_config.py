"""Configurations: presets by name, flags over files, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("jsonargparse")

from cfal_experiments.errors import InputError  # noqa: E402
from cfal_experiments.training import configuration  # noqa: E402
from cfal_experiments.training.config import Config  # noqa: E402


def test_flags_override_the_file_and_the_rest_keeps_its_default(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("loss:\n  name: arcface\n  scale: 30.0\nseeds:\n  order: 4\n")
    config = configuration.parse(["--config", str(file), "--loss.scale", "10", "--data", "patches"])
    assert config.loss.arguments() == {"scale": 10.0}
    assert config.data.path == "patches"
    assert config.seeds.order == 4
    assert config.training == Config().training


def test_a_saved_configuration_comes_back(tmp_path: Path):
    config = configuration.parse(["--loss.sigma", "auto", "--model.options.depth", "3"])
    configuration.save(config, tmp_path / "config.yaml")
    assert configuration.load(tmp_path / "config.yaml") == config
    assert config.loss.sigma == "auto"
    assert config.model.arguments() == {"depth": 3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "nowhere"], ["nowhere", "cfal presets list"]),
        (["--loss.sigmo", "3"], ["loss.sigmo"]),
        (["--loss.sigma", "wide"], ["loss.sigma", "wide"]),
        (["--data.batch_size", "0"], ["data.batch_size", "at least 1"]),
        (["--training.precision", "8"], ["training.precision", "bf16-mixed"]),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(arguments: list[str], words: list[str]):
    with pytest.raises(InputError) as caught:
        configuration.parse(arguments)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["loss:\n  sigmo: 3\n", "lost: 1\n", "loss: [\n"])
def test_a_wrong_file_is_named(tmp_path: Path, text: str):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match="mine.yaml") as caught:
        configuration.load(file)
    assert "\n" not in str(caught.value)
