"""Posteriors of images from a trained system."""

from __future__ import annotations

import numpy as np
import torch

from cfal_experiments.classifier import Classifier
from cfal_experiments.data.loading import make_loader
from cfal_experiments.evaluation.predictions import Predictions
from cfal_experiments.training.source import Part

BATCH = 256


def predict_part(classifier: Classifier, part: Part) -> Predictions:
    """Posteriors of the images of a part, in the order of its rows, on the classifier's device."""
    device = next(classifier.parameters()).device
    classifier.eval()
    chunks = [
        classifier.predict_proba(batch.images.to(device)).float().cpu()
        for batch in make_loader(part.images, part.rows, BATCH)
    ]
    empty = torch.empty(0, part.images.num_classes)
    return Predictions(
        paths=np.asarray(part.paths),
        labels=np.asarray(part.labels),
        probabilities=torch.cat(chunks or [empty]).numpy(),
        class_names=tuple(part.images.class_names),
    )
