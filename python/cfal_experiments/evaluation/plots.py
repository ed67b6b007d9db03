"""Plots of scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cfal_experiments.atomic import replacing


def confusion(counts: np.ndarray, class_names: Sequence[str], title: str, file: Path) -> None:
    """Draw a confusion matrix as the paper's Fig. 4 and 5 do: each row as shares of its class.

    Args:
        counts: `[C, C]`, true classes as rows.
        class_names: C names.
        title: above the matrix.
        file: PNG to write.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.5 + 0.6 * len(class_names)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour)
    ticks = range(len(class_names))
    axes.set_xticks(ticks, class_names, rotation=45, ha="right")
    axes.set_yticks(ticks, class_names)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    write(figure, file)


def write(figure: Figure, file: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replacing(file) as stream:
        FigureCanvasAgg(figure).print_png(stream)
