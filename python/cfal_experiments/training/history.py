"""The metrics of a run, one row per epoch."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cfal_experiments import atomic

COLUMNS = (
    "epoch",
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "validation_f1_macro",
    "learning_rate",
    "seconds",
)


class History(Callback):
    """Keeps the rows in the checkpoint and writes all of them after every epoch.

    Lightning's CSV logger deletes the rows of the interrupted run when it is resumed. Here the file
    is a copy of what the checkpoint holds, so that a resumed run neither loses nor repeats a row.

    Args:
        file: `metrics.csv` of the run.

    Attributes:
        rows: one dictionary per epoch, with the keys `COLUMNS`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, float]] = []
        self._begin = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Part of every checkpoint."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        self.rows = [dict(row) for row in state_dict["rows"]]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of this epoch, epochs counted from 1."""
        metrics = trainer.callback_metrics
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        row |= {name: float(metrics[name]) for name in COLUMNS if name in metrics}
        row["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = round(time.perf_counter() - self._begin, 3)
        self.rows.append(row)
        if trainer.is_global_zero:
            self.write()

    def write(self) -> None:
        """Write the file anew."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        atomic.write_text(self.file, text.getvalue())
