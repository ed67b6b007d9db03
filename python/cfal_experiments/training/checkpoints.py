"""Checkpoints that survive a kill and a full disk, and hold everything a run continues from."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from cfal_experiments.atomic import replacing
from cfal_experiments.errors import InputError


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's files, written whole or not at all, and read without executing code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` in place of the file at `path`.

        Raises:
            InputError: the disk is full; the previous file is whole.
        """
        try:
            with replacing(Path(path)) as stream:
                torch.save(checkpoint, stream)
        except (OSError, RuntimeError) as error:
            # torch's writer reports a failed write as a RuntimeError whose context is the OSError.
            cause = error if isinstance(error, OSError) else error.__context__
            if isinstance(cause, OSError) and cause.errno in (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EFBIG,
            ):
                raise InputError(
                    f"{path}: the disk is full; the previous checkpoint is whole, so free some "
                    f"space and continue with --resume"
                ) from error
            raise

    def load_checkpoint(
        self, path: str, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint; tensors and plain values only, whatever `weights_only` says.

        Raises:
            InputError: the file is missing, damaged, or holds anything else.
        """
        return read(Path(path), map_location)

    def remove_checkpoint(self, path: str) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without executing code.

    Raises:
        InputError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such checkpoint; give the folder of a run") from error
    except Exception as error:  # pickle, zip and torch each have errors of their own
        raise InputError(
            f"{path}: not a checkpoint of this package, or a damaged one; train again, or restore "
            f"the file from a copy"
        ) from error


def finished(state: dict[str, Any], epochs: int) -> bool:
    """Whether the training that wrote a state had come to its end."""
    [own] = [entry for entry in state["callbacks"].values() if "stopped" in entry]
    return own["stopped"] or state["epoch"] + 1 >= epochs


class Checkpoints(Checkpoint):
    """After every epoch: the weights if they are the best so far, then the whole state.

    In this order a kill between the two repeats the epoch and writes the same best weights again.

    Args:
        folder: where `best.ckpt` and `last.ckpt` go.

    Attributes:
        best_loss: lowest validation loss so far.
        best_epoch: its epoch, from 0; -1 before the first finite one.
        stopped: patience was spent at the last epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best_loss = float("inf")
        self.best_epoch = -1
        self.stopped = False

    @property
    def best(self) -> Path:
        """Weights of the best epoch."""
        return self.folder / "best.ckpt"

    @property
    def last(self) -> Path:
        """Everything needed to continue after the last epoch."""
        return self.folder / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """Part of every checkpoint."""
        return {
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        self.best_loss = state_dict["best_loss"]
        self.best_epoch = state_dict["best_epoch"]
        self.stopped = state_dict["stopped"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every process takes part: a sharded strategy gathers its state here."""
        loss = float(trainer.callback_metrics["validation_loss"])
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, trainer.current_epoch
            trainer.save_checkpoint(self.best, weights_only=True)
        self.stopped = trainer.should_stop
        trainer.save_checkpoint(self.last)
