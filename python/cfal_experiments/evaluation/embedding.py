"""The features of images in a trained system, and the centres that its loss compares them with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from cfal_experiments.classifier import Classifier
from cfal_experiments.data.cache import Cache, is_cache
from cfal_experiments.data.layouts import open_collection
from cfal_experiments.data.loading import make_loader
from cfal_experiments.errors import InputError
from cfal_experiments.losses.angular import AngularMarginLoss
from cfal_experiments.losses.prototypes import PrototypeLoss
from cfal_experiments.training import export
from cfal_experiments.training.folder import RunFolder
from cfal_experiments.training.source import Part

BATCH = 256


@torch.no_grad()
def embed(classifier: Classifier, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features `[N, D]`, classes `[N]` and centres `[C, M, D]`, as the loss compares them.

    An angular loss looks at directions only: its features and class vectors come normalised. The
    rows of a linear layer are no points among the features: losses with one have no centres, M = 0.
    """
    loss = classifier.loss
    classifier.eval()
    batches = list(make_loader(part.images, part.rows, BATCH))
    features = torch.cat([classifier.features(batch.images) for batch in batches])
    centres = features.new_empty(loss.num_classes, 0, features.shape[1])
    if isinstance(loss, PrototypeLoss):
        centres = loss.head.prototypes
    elif isinstance(loss, AngularMarginLoss):
        features, centres = normalize(features), normalize(loss.head.weight)[:, None]
    labels = torch.cat([batch.labels for batch in batches])
    return features.numpy(), labels.numpy(), centres.detach().numpy()


def counts_of(place: Path) -> tuple[list[int], tuple[str, ...]]:
    """Images per class and class names: of the training part of a run, or of a data set.

    Raises:
        InputError: neither a complete run nor a data set.
    """
    if RunFolder(place).config.is_file():
        _, description = export.read(RunFolder(place).model)
        return list(description.class_counts), description.class_names
    opened = Cache.open(place) if is_cache(place) else open_collection(place)
    if 0 in opened.counts():
        empty = opened.class_names[opened.counts().index(0)]
        raise InputError(f"{place}: class {empty} has no image; leave its folder out")
    return opened.counts(), opened.class_names
