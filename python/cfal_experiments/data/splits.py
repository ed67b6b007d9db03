"""How a data set is split: a pure function of labels, patients, names and a seed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cfal_experiments.data.partition import PARTS, Split
from cfal_experiments.errors import InputError

KINDS = ("auto", "patient", "random", "authors", "janowczyk", "column")

TEST = 0.30  # the paper's share of IDC
VALIDATION = 0.15  # of what is not test
JANOWCZYK = (84, 29, 49)  # patients for training, validation and test (Janowczyk 2016)
DRAWS = 200  # random orders of the patients, of which the most balanced is taken


def make(
    kind: str,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    paths: np.ndarray | None = None,
    seed: int = 0,
    *,
    column: np.ndarray | None = None,
    test_names: str | Path | Sequence[str] | None = None,
    test: float = TEST,
    validation: float = VALIDATION,
    class_names: Sequence[str] | None = None,
) -> Split:
    """Split a data set into train, validation and test.

    Kinds:
        patient: no patient in two parts; classes as balanced as whole patients allow.
        random: each class split in the same proportions, whoever the patients are.
        authors: a list of file names is the test part, the rest is split at random. On IDC this is
            the paper's split, in which patients are in both train and test.
        janowczyk: patients in the proportions 84 : 29 : 49, drawn at random without looking at
            classes (Janowczyk and Madabhushi 2016).
        column: the parts that the source assigns. Without a validation part it is drawn from
            train, by patient where patients are known.
        auto: column where the source has a train part, else patient where patients are known,
            else random.

    Args:
        kind: one of the above.
        labels: `[N]` int64.
        groups: `[N]` patients, or None.
        paths: `[N]` names of the images; needed by `authors`.
        seed: decides everything that is drawn.
        column: `[N]` train, validation or test; needed by `column`.
        test_names: of `authors`: the names, or a text file with one a line (.gz is unpacked).
        test: share of the test part, of `patient` and `random`; 0 makes an empty one, where the
            test images lie elsewhere.
        validation: share of the validation part in what is not test.
        class_names: for messages.

    Returns:
        Disjoint ascending row numbers. Every class is in every part.

    Raises:
        InputError: the kind needs something that is missing, there are too few classes, images or
            patients, or a part lacks a class.

    Example:
        >>> split = make("patient", cache.labels, cache.groups, seed=7)
        >>> round(len(split.test) / len(cache), 2)
        0.3
    """
    if kind not in KINDS:
        raise InputError(f"split {kind!r} is unknown; choose from {', '.join(KINDS)}")
    if not (0 <= test < 1 and 0 < validation < 1):
        raise InputError(f"shares must lie between 0 and 1: test {test}, validation {validation}")
    labels = np.asarray(labels)
    names = class_names or [str(number) for number in range(int(labels.max(initial=0)) + 1)]
    _require_classes(labels, names)
    if kind == "auto":
        kind = _choose(groups, column)
    rng = np.random.default_rng(seed)
    everything, none = np.arange(len(labels)), np.empty(0, np.int64)
    if kind == "random":
        rest, tested = _stratified(everything, labels, test, rng) if test else (everything, none)
        train, validated = _stratified(rest, labels, validation, rng)
    elif kind == "patient":
        groups = _require(groups, kind, "patients; use random, or a manifest that has them")
        rest, tested = (
            _grouped(everything, labels, groups, test, rng) if test else (everything, none)
        )
        train, validated = _grouped(rest, labels, groups, validation, rng)
    elif kind == "janowczyk":
        groups = _require(groups, kind, "patients; use random, or a manifest that has them")
        train, validated, tested = _janowczyk(groups, rng)
    elif kind == "authors":
        paths = _require(paths, kind, "the names of the images")
        tested = _listed(paths, _require(test_names, kind, "the file with the test names; give it"))
        train, validated = _stratified(np.setdiff1d(everything, tested), labels, validation, rng)
    else:
        column = _require(column, kind, "a source with parts; use random or patient")
        train, validated, tested = _column(column, labels, groups, validation, rng)
    split = Split(*(np.sort(rows).astype(np.int64) for rows in (train, validated, tested)))
    parts = [part for part in PARTS if part != "test" or test > 0 or len(tested)]
    _require_every_class(split, parts, labels, names, kind)
    return split


def read_names(file: str | Path) -> list[str]:
    """The lines of a text file, gzipped or not.

    Pickled lists, as some authors publish them, run code when they are read; they are refused.

    Raises:
        InputError: the file is missing, or not text.
    """
    file = Path(file)
    try:
        data = file.read_bytes()
        if file.suffix == ".gz":
            data = gzip.decompress(data)
        lines = data.decode("utf-8").split("\n")
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{file}: not a text file; write one name a line (pickled lists are never read)"
        ) from error
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}; give a readable list") from error
    return [line.strip() for line in lines if line.strip()]


def _choose(groups: np.ndarray | None, column: np.ndarray | None) -> str:
    if column is not None and (np.asarray(column) == "train").any():
        return "column"
    return "random" if groups is None else "patient"


def _stratified(
    rows: np.ndarray, labels: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The share of each class, rounded, at least one image of each and never all."""
    taken = [np.empty(0, np.int64)]
    for label in np.unique(labels[rows]):
        members = rng.permutation(rows[labels[rows] == label])
        taken.append(members[: min(max(round(share * len(members)), 1), len(members) - 1)])
    part = np.concatenate(taken)
    return np.setdiff1d(rows, part), part


def _grouped(
    rows: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    share: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Whole groups for about a share of every class.

    Of many random orders of the groups, and of every place to cut one, the choice has the smallest
    worst deviation max_c |n_c / N_c - share|, where n_c of the N_c images of class c fall before
    the cut. Cuts that leave a class out of either side come last.
    """
    members, which = np.unique(groups[rows], return_inverse=True)
    if len(members) < 2:
        raise _too_few(groups)
    classes, label_of = np.unique(labels[rows], return_inverse=True)
    counts = np.zeros((len(members), len(classes)))
    np.add.at(counts, (which, label_of), 1)
    total = counts.sum(0)
    best, chosen = np.inf, np.empty(0, np.int64)
    for _ in range(DRAWS):
        order = rng.permutation(len(members))
        before = counts[order].cumsum(0)[:-1]  # [cuts, classes], a group on both sides of each
        deviation = np.abs(before / total - share).max(1)
        deviation += ((before == 0) | (before == total)).any(1)  # 1: more than any deviation
        cut = int(deviation.argmin())
        if deviation[cut] < best:
            best, chosen = deviation[cut], order[: cut + 1]
    inside = np.isin(which, chosen)
    return rows[~inside], rows[inside]


def _janowczyk(groups: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    members = rng.permutation(np.unique(groups))
    if len(members) < len(PARTS):
        raise _too_few(groups)
    ends = np.round(np.cumsum(JANOWCZYK) / sum(JANOWCZYK) * len(members)).astype(int)
    parts = np.split(members, ends[:-1])
    return [np.flatnonzero(np.isin(groups, part)) for part in parts]


def _listed(paths: np.ndarray, test_names: str | Path | Sequence[str]) -> np.ndarray:
    """Rows whose file name is in the list; entries that are not here are no error."""
    source = "the list of test names"
    if isinstance(test_names, (str, Path)):
        source = str(test_names)
        test_names = read_names(test_names)
    wanted = {_file_name(name) for name in test_names}
    found = [row for row, path in enumerate(paths) if _file_name(path) in wanted]
    if not found:
        raise InputError(f"{source}: names none of the images; give the list of this data set")
    return np.array(found, dtype=np.int64)


def _file_name(path: str) -> str:
    return str(path).rpartition("/")[2]


def _column(
    column: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    validation: float,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    train, validated, tested = (np.flatnonzero(np.asarray(column) == part) for part in PARTS)
    if not len(train):
        raise InputError("split column: the source has no train part; use random or patient")
    if not len(validated):
        if groups is None:
            train, validated = _stratified(train, labels, validation, rng)
        else:
            train, validated = _grouped(train, labels, groups, validation, rng)
    return [train, validated, tested]


def _require(value: object, kind: str, what: str) -> object:
    if value is None:
        raise InputError(f"split {kind} needs {what}")
    return value


def _require_classes(labels: np.ndarray, names: Sequence[str]) -> None:
    counts = np.bincount(labels, minlength=len(names))
    present = [name for name, count in zip(names, counts, strict=True) if count]
    if len(present) < 2:
        raise InputError(
            f"one class only ({', '.join(present) or 'none'}); a classifier needs images of two or "
            "more"
        )
    for name, count in zip(names, counts, strict=True):
        if count < len(PARTS):
            raise InputError(
                f"class {name} has {count} image{'' if count == 1 else 's'}; each of train, "
                "validation and test needs one: add some, or leave the class out"
            )


def _require_every_class(
    split: Split, parts: Sequence[str], labels: np.ndarray, names: Sequence[str], kind: str
) -> None:
    for part in parts:
        counts = np.bincount(labels[getattr(split, part)], minlength=len(names))
        for name, count in zip(names, counts, strict=True):
            if count == 0:
                raise InputError(
                    f"split {kind}: the {part} part has no image of class {name}; add images or "
                    "patients of that class, or use another split"
                )


def _too_few(groups: np.ndarray) -> InputError:
    count = len(np.unique(groups))
    return InputError(
        f"{count} patient{' is' if count == 1 else 's are'} too few for a split by patient; add "
        "patients, or use the random split"
    )
