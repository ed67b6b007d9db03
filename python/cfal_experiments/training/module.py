"""The training step and the validation of an epoch, as Lightning calls them."""

from __future__ import annotations

import random

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassConfusionMatrix

from cfal_experiments.classifier import Classifier
from cfal_experiments.data.loading import Batch, flip
from cfal_experiments.evaluation.metrics import accuracy_of, macro_f1_of
from cfal_experiments.training import optimizers
from cfal_experiments.training.config import Config


class TrainingModule(LightningModule):
    """A classifier with its optimizer, augmentation and validation scores.

    Everything random is a function of the seeds and the epoch: order and flips by construction,
    dropout because every epoch starts its generators anew. A resumed run therefore needs no
    generator state.

    Args:
        classifier: what is trained.
        config: the run's.
    """

    def __init__(self, classifier: Classifier, config: Config) -> None:
        super().__init__()
        self.classifier = classifier
        self.config = config
        self.confusion = MulticlassConfusionMatrix(classifier.loss.num_classes)
        # Sums on the device: a value fetched in every step would wait for the device each time.
        self.register_buffer("train_sum", torch.zeros(2, dtype=torch.float64), persistent=False)
        self.register_buffer("valid_sum", torch.zeros(2, dtype=torch.float64), persistent=False)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Start the generators of dropout and the like for this epoch and process."""
        if index:
            return
        key = (self.config.seeds.init, self.current_epoch, self.global_rank)
        state = int(np.random.SeedSequence(key).generate_state(1)[0])
        torch.manual_seed(state)
        np.random.seed(state)
        random.seed(state)
        self.train_sum.zero_()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The mean loss of one batch."""
        images = batch.images
        if self.config.data.flips:
            images = flip(images, batch.rows, self.config.seeds.augmentation, self.current_epoch)
        loss = self.classifier(images, batch.labels)
        self.train_sum += torch.stack([loss.detach() * len(images), loss.new_tensor(len(images))])
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Add one batch to the sums of the validation."""
        features = self.classifier.features(batch.images)
        loss = self.classifier.loss(features, batch.labels)
        count = len(batch.labels)
        self.valid_sum += torch.stack([loss * count, loss.new_tensor(count)])
        self.confusion.update(self.classifier.loss.predict_proba(features), batch.labels)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self.valid_sum.zero_()
        self.confusion.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the epoch; every process has the same values."""
        counts = self.confusion.compute().cpu().numpy()
        self.log_dict(
            {
                "train_loss": self._mean(self.train_sum),
                "validation_loss": self._mean(self.valid_sum),
                "validation_accuracy": accuracy_of(counts),
                "validation_f1_macro": macro_f1_of(counts),
            },
        )

    def configure_optimizers(self) -> Optimizer:
        """The optimizer of the configuration."""
        mixed = self.config.training.precision != "32-true"
        return optimizers.build(self.config.optimizer, self.classifier, fused=not mixed)

    def _mean(self, sums: Tensor) -> float:
        total, count = self.trainer.strategy.reduce(sums.clone(), reduce_op="sum").tolist()
        return total / count if count else float("nan")
