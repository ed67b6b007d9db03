"""How many processes share a run, and which of them this is, before there is a trainer to know.

Further processes are started by Lightning (`--devices 2`) or by torchrun.
"""

from __future__ import annotations

import os

import torch.distributed

from cfal_experiments.errors import InputError
from cfal_experiments.training.config import TrainingConfig


def is_first() -> bool:
    """Whether this is the process that writes."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))
    return all(rank == "0" for rank in ranks)


def settle(training: TrainingConfig) -> None:
    """Set `devices` to the number of processes that torchrun has started, where it has.

    Raises:
        InputError: the configuration asks for another number.
    """
    if not torch.distributed.is_torchelastic_launched():
        return
    world = int(os.environ["WORLD_SIZE"])
    if training.devices not in (1, world):
        raise InputError(
            f"training.devices is {training.devices}, but torchrun has started {world} processes; "
            f"leave --devices out, or give torchrun --nproc-per-node {training.devices}"
        )
    training.devices = world


def require_accelerator(training: TrainingConfig) -> None:
    """Check that the accelerator that is asked for is there, before anything is written.

    Raises:
        InputError: it is not.
    """
    if training.accelerator == "gpu" and not torch.accelerator.is_available():
        raise InputError(
            "training.accelerator is gpu, and torch finds none here; give --training.accelerator "
            "cpu, or install a torch that was built for the GPU"
        )


def nodes() -> int:
    """Machines that share the run; more than one only under torchrun."""
    if not torch.distributed.is_torchelastic_launched():
        return 1
    return int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"])
