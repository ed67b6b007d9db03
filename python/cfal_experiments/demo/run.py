"""What the demo does once its options are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import cfal_kernels as cfal
from cfal_experiments.classifier import Classifier
from cfal_experiments.data.loading import make_loader
from cfal_experiments.demo import report, tasks
from cfal_experiments.demo.comparison import Recipe, Task, build_system, run
from cfal_experiments.progress import bar
from cfal_experiments.timing import interleaved_medians
from cfal_experiments.training import configuration, optimizers, start
from cfal_experiments.training.config import Config
from cfal_experiments.training.source import Source


def run_demo(
    folder: Path | None,
    seeds: int | None,
    epochs: int | None,
    threads: int | None,
    max_patches: int,
) -> None:
    """Train every loss of a task with several seeds; print the scores and the time per step.

    Raises:
        InputError: `folder` holds nothing to learn from.
    """
    task = tasks.digits_task() if folder is None else tasks.load_idc_task(folder, max_patches)
    if epochs is not None:
        recipes = (
            Recipe(each.name, configuration.override(each.config, {"training.epochs": epochs}))
            for each in task.recipes
        )
        task = dataclasses.replace(task, recipes=tuple(recipes))
    count = seeds or task.seeds
    torch.set_num_threads(threads or task.threads)
    for seed in range(count):
        task.split(seed)  # a split that cannot be made is to be known before the first training
    print(describe(task), flush=True)
    scores = compare(task, count)
    print("\n" + report.comparison(scores, task.columns, task.minority_text))
    print("\n" + step_times(task))


def describe(task: Task) -> str:
    """What is compared, under which budget and with which settings."""
    parts = [f"{name} {len(rows):,}" for name, rows in task.split(0).parts().items()]
    model = task.build_model()
    head = (model.embedding_dim + 1) * task.images.num_classes
    size = head + sum(parameter.numel() for parameter in model.parameters())
    training = task.budget.training
    lines = [
        *task.facts,
        ("split", f"{task.split_text} (seed 0: {', '.join(parts)})"),
        ("model", f"{type(model).__name__}, {size:,} parameters with a linear head"),
        (
            "budget",
            f"for each loss: AdamW, batch {task.budget.data.batch_size}, up to {training.epochs} "
            f"epochs,",
        ),
        ("", f"stop after {training.patience} without a better validation loss, restore the best"),
        *(("" if row else "settings", str(recipe)) for row, recipe in enumerate(task.recipes)),
        ("", task.settings_text),
    ]
    return "\n".join([task.title, "", *(f"  {name:<10}{text}" for name, text in lines)])


def compare(task: Task, seeds: int) -> dict[str, list[dict[str, float]]]:
    """Test scores of every loss for the seeds 0, 1, ..."""
    scores: dict[str, list[dict[str, float]]] = {recipe.name: [] for recipe in task.recipes}
    epochs = task.budget.training.epochs
    with bar(seeds * len(task.recipes) * epochs, "training", "epoch") as progress:
        for seed in range(seeds):
            for run_number, recipe in enumerate(task.recipes, start=seed * len(task.recipes) + 1):
                progress.set_description(f"seed {seed + 1}/{seeds}, {recipe.name}")
                scores[recipe.name].append(
                    run(task, recipe, seed, "test", lambda epoch, loss: progress.update())
                )
                # Early stopping leaves epochs over; the bar steps over them.
                progress.update(run_number * epochs - progress.n)
    return scores


def step_times(task: Task) -> str:
    """Table of the time per step: the loss alone, and the whole training step around it."""
    split = task.split(0)
    [images, target, _] = next(
        iter(make_loader(task.images, split.train, task.budget.data.batch_size, shuffle=True))
    )
    baseline, *_, recipe = task.recipes
    contenders: dict[str, Config] = {
        "softmax cross-entropy": baseline.config,
        "cfal, fused": recipe.config,
        "cfal, eager": configuration.override(recipe.config, {"loss.options.backend": "reference"}),
    }
    systems = {name: build_system(task, config, split) for name, config in contenders.items()}
    for system in systems.values():
        start.initialise(
            system, Source(task.images, split).train, task.budget.training.first_batches, seed=0
        )
    with torch.no_grad():
        features = systems["cfal, eager"].features(images)
    served = cfal.explain(features, systems["cfal, fused"].loss.head.prototypes)
    if served.backend == "reference":
        del systems["cfal, fused"]
    loss_alone = interleaved_medians(
        {name: _loss_step(system.loss, features, target) for name, system in systems.items()},
        repeats=300,
    )
    whole_step = interleaved_medians(
        {
            name: _training_step(system, contenders[name], images, target)
            for name, system in systems.items()
        },
        repeats=30,
    )
    rows = [
        [name, report.duration(loss_alone[name]), report.duration(whole_step[name])]
        for name in systems
    ]
    if served.backend == "reference":
        closing = f"no fused kernels served here: {served.reasons['cpu']}"
    else:
        gain = loss_alone["cfal, eager"] / loss_alone["cfal, fused"]
        share = loss_alone["cfal, fused"] / loss_alone["softmax cross-entropy"]
        closing = (
            f"the fused loss (backend {served.backend}) is {gain:.1f} times as fast as eager and "
            f"costs {share:.2f} times the softmax head"
        )
    threads = torch.get_num_threads()
    return "\n".join(
        [
            f"Time per step, forward + backward: batch {len(target)}, "
            f"{task.images.num_classes} classes, embedding {features.shape[1]}, "
            f"{threads} thread{'s' if threads > 1 else ''}; median, steps interleaved",
            "",
            report.indented(["", "loss alone", "whole training step"], rows),
            "",
            f"  {closing}",
        ]
    )


def _loss_step(loss: nn.Module, features: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    leaf = features.detach().clone().requires_grad_()
    parameters = [leaf, *loss.parameters()]

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        loss(leaf, target).backward()

    return step


def _training_step(
    system: Classifier, config: Config, images: torch.Tensor, target: torch.Tensor
) -> Callable[[], None]:
    optimizer = optimizers.build(config.optimizer, system)
    system.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        system(images, target).backward()
        optimizer.step()

    return step
