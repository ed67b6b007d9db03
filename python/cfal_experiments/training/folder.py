"""The folder of a run: which file is what, and when a folder may be used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfal_experiments.errors import InputError


@dataclass(frozen=True)
class RunFolder:
    """Everything that a run reads from and writes to.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The whole configuration."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and hardware."""
        return self.path / "environment.json"

    @property
    def split(self) -> Path:
        """Which image is in which part."""
        return self.path / "split.csv"

    @property
    def first_batch(self) -> Path:
        """What the loss saw before the first step (affinity family)."""
        return self.path / "first_batch.json"

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """Folder of `best.ckpt` and `last.ckpt`."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The best weights with classes, preprocessing and loss."""
        return self.path / "model.safetensors"

    @property
    def predictions(self) -> Path:
        """Posteriors of the validation and test images."""
        return self.path / "predictions.npz"

    @property
    def summary(self) -> Path:
        """Scores; the last file to be written: a run that has it is complete."""
        return self.path / "summary.json"

    @property
    def complete(self) -> bool:
        """Whether training has come to its end and everything is written."""
        return self.summary.is_file()

    def require_unused(self) -> None:
        """Check that a run can begin here.

        Raises:
            InputError: the folder holds something.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: not a folder; choose another with -o")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise InputError(
                f"{self.path}: holds something already; continue that run with "
                f"'cfal train --resume {self.path}', or choose another folder with -o"
            )

    def require_begun(self) -> None:
        """Check that a run has begun here.

        Raises:
            InputError: it has not.
        """
        if not self.config.is_file():
            raise InputError(
                f"{self.path}: not a run, it has no {self.config.name}; give the folder that "
                f"'cfal train' wrote"
            )

    def read_summary(self) -> dict[str, Any]:
        """The scores of a complete run.

        Raises:
            InputError: the run is not complete, or the file is damaged.
        """
        if not self.complete:
            raise InputError(
                f"{self.path}: not a complete run; finish it with 'cfal train --resume {self.path}'"
            )
        try:
            return json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.summary}: damaged ({error}); delete it and finish the run with --resume"
            ) from error
