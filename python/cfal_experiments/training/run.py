"""A run: train, keep the best weights, export them, predict, sum up."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import cfal_kernels
from cfal_experiments import atomic
from cfal_experiments import classifier as systems
from cfal_experiments.classifier import Classifier
from cfal_experiments.data.normalisation import Normalisation
from cfal_experiments.data.partition import Split
from cfal_experiments.errors import NotFinite
from cfal_experiments.evaluation import inference, metrics, predictions
from cfal_experiments.training import (
    checkpoints as states,
)
from cfal_experiments.training import (
    configuration,
    environment,
    export,
    processes,
    source,
    start,
    trainer,
)
from cfal_experiments.training.config import Config
from cfal_experiments.training.export import Description
from cfal_experiments.training.folder import RunFolder
from cfal_experiments.training.history import History
from cfal_experiments.training.module import TrainingModule
from cfal_experiments.training.source import Source

PARTS = ("validation", "test")


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: of the run.
        best_epoch: from 1.
        epochs: that were trained.
        scores: by part, as `evaluation.metrics.scores` gives them.
    """

    folder: RunFolder
    best_epoch: int
    epochs: int
    scores: dict[str, dict[str, Any]]


def train(
    config: Config,
    folder: str | os.PathLike[str],
    *,
    images: source.ImageSet | None = None,
    parts: tuple[str, ...] = PARTS,
    quiet: bool = False,
) -> Outcome | None:
    """Train a system from its beginning and write a run folder.

    Args:
        config: what to train, on what, how.
        folder: a folder that does not exist, or is empty.
        images: what `config.data.path` holds, where it was opened already.
        parts: which are predicted and scored in the end; a search leaves out "test".
        quiet: print nothing.

    Returns:
        The outcome; None in the further processes of a distributed run.

    Raises:
        InputError: something in the configuration, the data or the folder cannot be used; as
            `NotFinite`, the validation loss never was.

    Example:
        >>> outcome = train(configuration.load("idc_cfal"), "runs/idc_cfal")
        >>> outcome.scores["test"]["f1_macro"]
    """
    run = RunFolder(Path(folder))
    if processes.is_first():
        run.require_unused()
    return _Run(config, run, images, parts, quiet).execute()


def resume(
    folder: str | os.PathLike[str],
    *,
    data: str | None = None,
    images: source.ImageSet | None = None,
    parts: tuple[str, ...] = PARTS,
    quiet: bool = False,
) -> Outcome | None:
    """Continue an interrupted run from its last complete epoch, to the same end.

    On the same machine the weights come out as without the interruption, to the bit. A complete run
    is left as it is.

    Args:
        folder: of the run.
        data: where the images are, if they were moved.
        images: as in `train`.
        parts: as in `train`.
        quiet: as in `train`.

    Raises:
        InputError: there is no run, or not its data.
    """
    run = RunFolder(Path(folder))
    run.require_begun()
    config = configuration.load(run.config)
    if run.complete:
        return _outcome(run)
    if data is not None:
        config.data.path = data
    return _Run(config, run, images, parts, quiet).execute()


class _Run:
    """The steps of a run; each is repeated harmlessly after an interruption."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        images: source.ImageSet | None,
        parts: tuple[str, ...],
        quiet: bool,
    ) -> None:
        self.config = config
        self.folder = folder
        self.images = images
        self.parts = parts
        self.quiet = quiet

    def execute(self) -> Outcome | None:
        config, folder = self.config, self.folder
        processes.settle(config.training)
        processes.require_accelerator(config.training)
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        begin = time.perf_counter()
        model = systems.build_model(config.model, config.seeds.init)
        size = config.data.size or model.input_size
        data = self._open(size)
        counts = data.images.counts(data.split.train)
        normalisation = data.normalisation(config.data.normalisation)
        built = systems.build(model, config.loss, counts, normalisation, config.seeds.init)
        if processes.is_first():
            self._write_beginning(data)
        checkpoints = states.Checkpoints(folder.checkpoints)
        history = History(folder.metrics)
        if not self._fit(built, data, checkpoints, history):
            return None
        best = states.read(checkpoints.best)["state_dict"]
        built.load_state_dict(
            {name.removeprefix("classifier."): value for name, value in best.items()}
        )
        description = _describe(config, data, counts, normalisation, size)
        export.save(built, description, folder.model)
        return self._sum_up(built, data, checkpoints, history, time.perf_counter() - begin)

    def _open(self, size: int) -> Source:
        config, split_file = self.config, self.folder.split
        opened = self.images
        if opened is None:
            opened = source.open_images(config.data, config.data.path, size)
        if split_file.is_file():
            split = Split.load(split_file, opened.paths)
        else:
            split = source.make_split(config, opened)
        tested = None
        if "test" in self.parts:
            tested = source.open_test(config.data, opened, size)
        return Source(opened, split, tested)

    def _write_beginning(self, data: Source) -> None:
        """What is known before the first step.

        The configuration comes first, for it marks a run: whatever a kill leaves out after it is
        made again by `resume`, from the configuration alone.
        """
        folder = self.folder
        folder.path.mkdir(parents=True, exist_ok=True)
        if not folder.config.is_file():
            configuration.save(self.config, folder.config)
        if not folder.environment.is_file():
            text = json.dumps(environment.describe(), indent=2) + "\n"
            atomic.write_text(folder.environment, text)
        if not folder.split.is_file():
            data.split.save(folder.split, data.images.paths)

    def _fit(
        self,
        built: Classifier,
        data: Source,
        checkpoints: states.Checkpoints,
        history: History,
    ) -> bool:
        """Train to the end; False in the further processes of a distributed run."""
        config, last = self.config, checkpoints.last
        state = states.read(last) if last.is_file() else None
        if state is not None and states.finished(state, config.training.epochs):
            checkpoints.load_state_dict(state["callbacks"][checkpoints.state_key])
            history.load_state_dict(state["callbacks"][history.state_key])
            history.write()
            self._require_best(checkpoints)
            return processes.is_first()
        if state is None:
            train, seed = data.train, config.seeds.order
            start.initialise(built, train, config.training.first_batches, seed)
            if processes.is_first():
                facts = start.report(built, train, config.data.batch_size, seed)
                start.tell(facts, self.folder.first_batch, quiet=self.quiet)
        if config.training.compile:
            built.model.compile()
        module = TrainingModule(built, config)
        step = 0 if state is None else state["global_step"]
        worker = trainer.build(
            config, self.folder, checkpoints, history, step=step, quiet=self.quiet
        )
        learn, validate = trainer.loaders(config, data, worker.global_rank)
        worker.fit(module, learn, validate, ckpt_path=last if state else None, weights_only=True)
        self._require_best(checkpoints)
        built.cpu()
        return worker.is_global_zero

    def _require_best(self, checkpoints: states.Checkpoints) -> None:
        if checkpoints.best_epoch < 0:
            raise NotFinite(
                f"{self.folder.path}: the validation loss was never finite; lower "
                f"--optimizer.learning_rate or clip with --training.gradient_clip"
            )

    def _sum_up(
        self,
        built: Classifier,
        data: Source,
        checkpoints: states.Checkpoints,
        history: History,
        seconds: float,
    ) -> Outcome:
        folder, names = self.folder, data.images.class_names
        found = {
            part: inference.predict_part(built, getattr(data, part))
            for part in self.parts
            if len(getattr(data, part).rows)
        }
        predictions.save(folder.predictions, found)
        summary = {
            "best_epoch": checkpoints.best_epoch + 1,
            "epochs": len(history.rows),
            "seconds": round(seconds, 1),
            "scores": {
                part: metrics.scores(each.labels, each.probabilities, names)
                for part, each in found.items()
            },
        }
        atomic.write_text(folder.summary, json.dumps(summary, indent=2) + "\n")
        return _outcome(folder)


def _outcome(folder: RunFolder) -> Outcome:
    summary = folder.read_summary()
    return Outcome(folder, summary["best_epoch"], summary["epochs"], summary["scores"])


def _describe(
    config: Config, data: Source, counts: list[int], normalisation: Normalisation, size: int
) -> Description:
    return Description(
        class_names=tuple(data.images.class_names),
        class_counts=tuple(counts),
        size=size,
        normalisation=normalisation,
        model=config.model,
        loss=config.loss,
        version=cfal_kernels.__version__,
    )
