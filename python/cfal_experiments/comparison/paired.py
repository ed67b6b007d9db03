"""Differences to a baseline: run by run, and what other patients in the test part would change.

Runs of one seed share split, order and flips, so their difference is that of the systems. How much
of it hangs on the patients that happen to be in the test part, no number of seeds tells: patches of
a patient resemble one another. The interval is therefore a bootstrap of whole patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfal_experiments.comparison.compare import Trial
from cfal_experiments.data import Cache, open_collection
from cfal_experiments.data.cache import is_cache
from cfal_experiments.evaluation import metrics, predictions
from cfal_experiments.training.config import DataConfig

RESAMPLES = 2000
LEVELS = (2.5, 97.5)  # per cent


@dataclass(frozen=True)
class Difference:
    """Macro F1 of a system minus that of a baseline, on the test part.

    Attributes:
        system: name of the configuration.
        baseline: what it is compared with.
        by_seed: one difference per seed.
        interval: 95 % of the mean over the seeds, when patients are drawn anew with replacement.
    """

    system: str
    baseline: str
    by_seed: tuple[float, ...]
    interval: tuple[float, float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.by_seed))


def differences(
    trials: Sequence[Trial], baselines: Sequence[str], patients: Mapping[str, str] | None = None
) -> list[Difference]:
    """Every system against every baseline.

    Args:
        trials: complete runs, every system with the same seeds.
        baselines: names of configurations among them.
        patients: of each image, by path; None where they are unknown and each image counts alone.

    Raises:
        InputError: a run is not complete.
    """
    loaded = {
        (trial.name, trial.seed): predictions.load(trial.folder.predictions, "test")
        for trial in trials
    }
    systems = list(dict.fromkeys(trial.name for trial in trials))
    seeds = list(dict.fromkeys(trial.seed for trial in trials))
    paths = np.unique(np.concatenate([part.paths for part in loaded.values()]))
    groups = paths if patients is None else np.array([patients[path] for path in paths])
    _, group_of_path = np.unique(groups, return_inverse=True)
    # A patient is drawn for all systems and seeds at once.
    count = group_of_path.max() + 1
    rng = np.random.default_rng(0)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)
    scores = {}  # [1 + RESAMPLES] for each run: as it is, and with each draw
    for key, part in loaded.items():
        counts = np.zeros((count, len(part.class_names), len(part.class_names)))
        group = group_of_path[np.searchsorted(paths, part.paths)]
        np.add.at(counts, (group, part.labels, part.probabilities.argmax(1)), 1)
        drawn = np.tensordot(np.vstack([np.ones(count), draws]), counts, axes=1)
        scores[key] = metrics.per_class_of(drawn)[2].mean(-1)
    found = []
    for baseline in baselines:
        for system in systems:
            if system != baseline:
                by_seed = np.array([scores[system, s] - scores[baseline, s] for s in seeds])
                low, high = np.percentile(by_seed[:, 1:].mean(0), LEVELS)
                own = tuple(by_seed[:, 0].tolist())
                found.append(Difference(system, baseline, own, (float(low), float(high))))
    return found


def patients_of(data: DataConfig) -> dict[str, str] | None:
    """The patient of each image that a test part can hold, by path; None where none are known."""
    path = Path(data.test_path or data.path)
    images = Cache.open(path) if is_cache(path) else open_collection(path, data.layout)
    if images.groups is None:
        return None
    return dict(zip(images.paths.tolist(), images.groups.tolist(), strict=True))


def as_markdown(found: Sequence[Difference], seeds: Sequence[int]) -> str:
    """One line per difference, in points of macro F1."""
    lines = [
        f"| system | minus | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | 95 % |",
        "|---|---|" + "--:|" * (len(seeds) + 2),
    ]
    for each in found:
        numbers = [f"{100 * value:+.1f}" for value in (*each.by_seed, each.mean)]
        low, high = each.interval
        numbers.append(f"{100 * low:+.1f} to {100 * high:+.1f}")
        lines.append(f"| {each.system} | {each.baseline} | {' | '.join(numbers)} |")
    return "\n".join(lines)
