"""Lightning's Trainer as a run sets it up."""

from __future__ import annotations

import logging
import sys
import warnings
from datetime import timedelta

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from cfal_experiments.data.loading import make_loader
from cfal_experiments.training import processes
from cfal_experiments.training.checkpoints import AtomicCheckpointIO, Checkpoints
from cfal_experiments.training.config import Config
from cfal_experiments.training.folder import RunFolder
from cfal_experiments.training.history import History
from cfal_experiments.training.source import Part, Source

VALIDATION_BATCH = 256
PATIENCE_OF_RANKS = timedelta(minutes=30)


class EpochLine(Callback):
    """One line per epoch, where a progress bar would fill a file."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the scores of the epoch."""
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            print(
                f"epoch {trainer.current_epoch + 1}: train loss {metrics['train_loss']:.4g}, "
                f"validation loss {metrics['validation_loss']:.4g}, "
                f"macro F1 {metrics['validation_f1_macro']:.4f}",
                file=sys.stderr,
                flush=True,
            )


def build(
    config: Config,
    folder: RunFolder,
    checkpoints: Checkpoints,
    history: History,
    *,
    step: int = 0,
    quiet: bool = False,
) -> Trainer:
    """A trainer with early stopping, checkpoints, CSV and TensorBoard.

    Args:
        config: the run's.
        folder: where TensorBoard's files go.
        checkpoints: writes the states.
        history: writes `metrics.csv`.
        step: TensorBoard forgets what an interrupted run logged from this step on.
        quiet: neither bar nor lines.
    """
    _hush()
    training = config.training
    bar = sys.stderr.isatty() and not quiet
    shown: list[Callback] = [TQDMProgressBar()] if bar else [] if quiet else [EpochLine()]
    stop = EarlyStopping("validation_loss", patience=training.patience, mode="min")
    logger = TensorBoardLogger(folder.path, name="tensorboard", version="", purge_step=step or None)
    on_gpu = training.accelerator == "gpu"
    return Trainer(
        accelerator=training.accelerator,
        devices=training.devices // processes.nodes(),
        num_nodes=processes.nodes(),
        # Processes that start later than others wait for their images to be decoded.
        strategy=DDPStrategy(timeout=PATIENCE_OF_RANKS) if training.devices > 1 else "auto",
        precision=training.precision,
        max_epochs=training.epochs,
        gradient_clip_val=training.gradient_clip,
        callbacks=[*shown, history, stop, checkpoints],
        plugins=[AtomicCheckpointIO()],
        logger=logger,
        default_root_dir=folder.path,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
        deterministic="warn" if on_gpu else None,
        benchmark=False,
    )


def loaders(config: Config, source: Source, rank: int) -> tuple[DataLoader, DataLoader]:
    """Training and validation batches of one process.

    Each process takes its share of every batch, so that `batch_size` is that of a step over all of
    them.
    """
    world = config.training.devices
    train: Part = source.train
    batch = max(1, config.data.batch_size // world)
    share = {"rank": rank, "world_size": world}
    learn = make_loader(
        train.images, train.rows, batch, seed=config.seeds.order, shuffle=True, **share
    )
    # Without the sampler's filling up: no image may count twice in a score.
    rows = source.validation.rows[rank::world]
    return learn, make_loader(source.images, rows, VALIDATION_BATCH)


def _hush() -> None:
    """Leave out what Lightning says about itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*sync_dist=True.*",
        ".*is not empty.*",
        ".*Checkpoint directory.*",
        ".*GPU available but not used.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", text)
