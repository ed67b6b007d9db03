"""The configuration of a run: what a file in `configs/` holds and a flag can override.

Every class is one top-level key; a flag names the key and the field (`--loss.sigma 100`). Nothing
here imports torch, so that `cfal --help` stays quick.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from cfal_experiments.errors import InputError


@dataclass
class DataConfig:
    """Images, their preparation and their split.

    Args:
        path: folder of images, PathMNIST .npz, CSV manifest, or a cache made by `cfal data
            prepare`; `--data PATH` is short for it.
        test_path: a test set that lies elsewhere; `path` is then split into training and
            validation only.
        layout: how `path` is laid out; `auto` looks.
        size: side of the square in pixels that images are resized to; by default the model's input
            size.
        split: `auto` is the collection's own column if it has one, else by patient where patients
            are known, else random.
        test_names: file with the names of the test images, for the split `authors`.
        normalisation: per-channel statistics: of the training split, or ImageNet's.
        flips: flip training images at random, horizontally and vertically.
        long_tail: thin the training part to this many images with a long-tailed class profile.
        long_tail_ends: shares of the smallest and largest class in that profile.
        batch_size: images per step, over all devices together.
        cache_folder: where decoded images are kept between runs; by default `cfal` in the user's
            cache folder.
    """

    path: str | None = None
    test_path: str | None = None
    layout: str = "auto"
    size: int | None = None
    split: Literal["auto", "authors", "janowczyk", "patient", "random", "column"] = "auto"
    test_names: str | None = None
    normalisation: Literal["training", "imagenet"] = "training"
    flips: bool = True
    long_tail: int | None = None
    long_tail_ends: tuple[float, float] = (0.052, 0.19)
    batch_size: int = 32
    cache_folder: str | None = None

    def __post_init__(self) -> None:
        _at_least("data.batch_size", self.batch_size, 1)
        _at_least("data.size", self.size, 1)
        _at_least("data.long_tail", self.long_tail, 1)


@dataclass
class ModelConfig:
    """The network that maps an image to a vector; the classifier belongs to the loss.

    Args:
        name: a name that `cfal presets list` shows, or an import path `package.module:callable`.
        weights: initial weights: `imagenet`, or a local file.
        embedding_dim: length of the vector; by default the model's own.
        input_size: side of the input in pixels; by default the model's own.
        options: further options of this model, by name.
    """

    name: str = "alexnet32"
    weights: str | None = None
    embedding_dim: int | None = None
    input_size: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least("model.embedding_dim", self.embedding_dim, 1)
        _at_least("model.input_size", self.input_size, 1)

    def arguments(self) -> dict[str, Any]:
        """The options that were given, for `models.build(name, **arguments)`."""
        return _given(self)


@dataclass
class LossConfig:
    """The loss with its head; a field left empty takes the default of that loss.

    Args:
        name: cross-entropy, focal, arcface, cosface, sphereface, affinity,
            class-balanced-affinity, cfal or cfal-authors-code.
        sigma: width of the affinity; `auto` takes it from the features of the first images.
        margin: of the hinge (affinity family), or the angular margin.
        gamma: exponent of the focal factor.
        beta: of the class-balanced weights.
        scale: of the cosines (arcface, cosface, sphereface); s in the paper.
        diversity_weight: weight of the diversity term R.
        detach_focal: treat the focal factor as a constant in the gradient.
        centers_per_class: prototypes per class.
        init: where prototypes start: `authors` is random, `class-means` takes features of the first
            images.
        label_smoothing: of cross-entropy.
        inference: posteriors of the cosine losses: softmax of `scaled` cosines, or the `authors`'
            softmax of bare cosines.
        options: further options of this loss, by name.
    """

    name: str = "cfal"
    sigma: float | Literal["auto"] | None = None
    margin: float | None = None
    gamma: float | None = None
    beta: float | None = None
    scale: float | None = None
    diversity_weight: float | None = None
    detach_focal: bool | None = None
    centers_per_class: int | None = None
    init: Literal["authors", "class-means"] | None = None
    label_smoothing: float | None = None
    inference: Literal["scaled", "authors"] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """The options that were given, for `losses.build(name, ..., **arguments)`."""
        return _given(self)


@dataclass
class OptimizerConfig:
    """How the weights move.

    Args:
        name: of the optimizer.
        learning_rate: step size.
        head_learning_rate: step size of the loss's own parameters (prototypes or classifier); by
            default the same.
        weight_decay: decoupled, multiplied by the learning rate (adamw); an L2 term in the gradient
            (sgd, adam). Prototypes and biases decay like everything else.
        momentum: of sgd.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    head_learning_rate: float | None = None
    weight_decay: float = 0.01
    momentum: float = 0.9

    def __post_init__(self) -> None:
        for name in ("learning_rate", "head_learning_rate", "weight_decay", "momentum"):
            _at_least(f"optimizer.{name}", getattr(self, name), 0)


@dataclass
class TrainingConfig:
    """How long, on what, in which precision.

    Args:
        epochs: at most.
        patience: epochs without a better validation loss before training stops.
        precision: as Lightning names it.
        compile: run the model through torch.compile.
        gradient_clip: largest norm of the gradient; not clipped where empty.
        accelerator: as Lightning names it.
        devices: processes, each with its own device; more than one is DistributedDataParallel.
        threads: CPU threads per process; torch's own choice where empty.
        first_batches: training images whose features set `sigma: auto` and `init: class-means`.
    """

    epochs: int = 100
    patience: int = 5
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    compile: bool = False
    gradient_clip: float | None = None
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    threads: int | None = None
    first_batches: int = 2048

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "devices", "threads", "first_batches"):
            _at_least(f"training.{name}", getattr(self, name), 1)
        _at_least("training.gradient_clip", self.gradient_clip, 0)


@dataclass
class SeedsConfig:
    """What is drawn at random; `--seed N` sets all four.

    Args:
        init: initial weights, and dropout.
        order: order of the training images.
        augmentation: flips.
        split: of the images, and the draw of a long tail.
    """

    init: int = 0
    order: int = 0
    augmentation: int = 0
    split: int = 0

    def __post_init__(self) -> None:
        for name in ("init", "order", "augmentation", "split"):
            _at_least(f"seeds.{name}", getattr(self, name), 0)


@dataclass
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seeds: SeedsConfig = field(default_factory=SeedsConfig)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, as written to `config.yaml`."""
        return dataclasses.asdict(self)


#: Top-level keys of a configuration file and the class of each.
SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
    "seeds": SeedsConfig,
}


def _given(section: ModelConfig | LossConfig) -> dict[str, Any]:
    named = {
        entry.name: getattr(section, entry.name)
        for entry in dataclasses.fields(section)
        if entry.name not in ("name", "options")
    }
    return {name: value for name, value in named.items() if value is not None} | section.options


def _at_least(name: str, value: float | None, minimum: float) -> None:
    if value is not None and not value >= minimum:
        raise InputError(f"{name} is {value}; it must be at least {minimum}")
