"""The paper's figures of features (3), of class weights (6b) and of class sizes (7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import cfal_kernels as cfal
from cfal_experiments.evaluation.plots import write
from cfal_experiments.tuning.space import BETA

POINTS = 3000  # more hide one another


def features(
    points: np.ndarray,
    labels: np.ndarray,
    centres: np.ndarray,
    class_names: Sequence[str],
    file: Path,
    *,
    projection: str = "pca",
    seed: int = 0,
) -> None:
    """Draw features and the centres of their classes in two dimensions.

    Args:
        points: `[N, D]` features; at most `POINTS` of them are drawn, at random.
        labels: `[N]` their classes.
        centres: `[C, M, D]` centres, or `[C, 0, D]` where a loss has none.
        class_names: C names.
        file: PNG to write.
        projection: "pca" onto the two directions of largest variance, which keeps distances in
            them; or "tsne", which keeps neighbourhoods only.
        seed: of the draw and of t-SNE.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    kept = np.random.default_rng(seed).permutation(len(points))[:POINTS]
    points, labels = points[kept], labels[kept]
    together = np.concatenate([points, centres.reshape(-1, points.shape[1])])
    if projection == "pca":
        # Of the features alone: a centre far from all of them is not to choose the view.
        flat = PCA(2, random_state=seed).fit(points).transform(together)
    else:
        perplexity = min(30, (len(together) - 1) / 3)
        flat = TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(together)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    colours = _colours(len(class_names))
    stars = flat[len(points) :].reshape(*centres.shape[:2], 2)
    for number, name in enumerate(class_names):
        own = flat[: len(points)][labels == number]
        axes.scatter(*own.T, s=8, color=colours[number], alpha=0.5, linewidths=0, label=name)
        axes.scatter(*stars[number].T, s=220, marker="*", color=colours[number], edgecolors="black")
    axes.set(title=f"features ({projection}), stars are centres", xticks=[], yticks=[])
    if not centres.size:
        axes.set(title=f"features ({projection})")
    axes.legend(markerscale=2, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    write(figure, file)


def class_sizes(counts: Sequence[int], class_names: Sequence[str], file: Path) -> None:
    """Draw the number of images of each class, with its share, as Fig. 7 does."""
    figure = Figure(figsize=(1.5 + 0.8 * len(counts), 4), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(class_names, counts, color=_colours(len(counts)))
    axes.bar_label(bars, [f"{100 * count / sum(counts):.1f} %" for count in counts])
    axes.set(ylabel="images", title=f"{sum(counts):,} images")
    axes.margins(y=0.1)
    write(figure, file)


def class_weights(counts: Sequence[int], class_names: Sequence[str], file: Path) -> None:
    """Draw the class-balanced weights of every beta of Table III, as Fig. 6b does.

    omega_c is proportional to (1 - beta) / (1 - beta^n_c) and sums to C: no training is needed.
    """
    figure = Figure(figsize=(3 + 0.8 * len(counts), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(BETA)
    for number, beta in enumerate(BETA):
        weights = cfal.class_balanced_weights(list(counts), beta).tolist()
        places = np.arange(len(counts)) + (number - (len(BETA) - 1) / 2) * width
        axes.bar(places, weights, width, label=f"{beta:g}", color=f"C{number}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(counts)), class_names)
    axes.set(ylabel="class weight")
    axes.legend(title="beta", fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    write(figure, file)


def _colours(count: int) -> list[str]:
    return [f"C{number % 10}" for number in range(count)]
