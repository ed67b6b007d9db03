"""Small runs of the training harness, as several test files need them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cfal_experiments.training.config import Config

CLASSES = ("dark", "grey", "bright")


def write_folder(folder: Path, per_class: int = 60, size: int = 8, seed: int = 0) -> Path:
    """A folder of class folders; the classes differ in brightness, with some overlap."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            level = 60 + 60 * number + rng.normal(0, 25)
            pixels = np.clip(rng.normal(level, 30, (size, size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}{index:03}.png")
    return folder


def config_for(folder: Path, *, epochs: int = 4, loss: str = "cfal", **fields: object) -> Config:
    """A configuration of a second or two; `fields` are options of the loss."""
    config = Config()
    config.data.path = str(folder)
    config.data.cache_folder = str(folder.parent / "cache")
    config.data.batch_size = 16
    config.model.name = "dropout_model:DropoutNet"
    config.loss.name = loss
    for name, value in fields.items():
        setattr(config.loss, name, value)
    config.training.epochs = epochs
    config.training.accelerator = "cpu"
    config.training.threads = 1
    return config
