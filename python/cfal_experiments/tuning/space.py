"""What a search varies: fields of a configuration and the values that each may take."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfal_experiments.errors import InputError
from cfal_experiments.training import configuration
from cfal_experiments.training.config import Config

if TYPE_CHECKING:
    from optuna.trial import Trial

#: Table III, by the fields that its losses have.
BETA = (0.9, 0.99, 0.999, 0.9999, 0.99999)
LAMBDA = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SIGMA = (80, 130, 180, 230, 280, 330, 380, 430)
GAMMA = (0.5, 1, 2, 5)
SCALE = (1, 5, 10, 15, 20, 30, 64)
ANGULAR_MARGIN = (0.1, 0.35, 0.5, 0.7, 0.9)

_AFFINITY = {"loss.margin": LAMBDA, "loss.sigma": SIGMA}
_COSINE = {"loss.scale": SCALE, "loss.margin": ANGULAR_MARGIN, "loss.beta": BETA}
_CFAL = {**_AFFINITY, "loss.gamma": GAMMA, "loss.beta": BETA}

#: Spaces by name, then by loss. The paper has none for cross-entropy.
SPACES: Mapping[str, Mapping[str, Mapping[str, Sequence[object]]]] = {
    "paper": {
        "focal": {"loss.gamma": GAMMA, "loss.beta": BETA},
        "arcface": _COSINE,
        "cosface": _COSINE,
        "sphereface": _COSINE,
        "affinity": _AFFINITY,
        "class-balanced-affinity": {**_AFFINITY, "loss.beta": BETA},
        "cfal": _CFAL,
        "cfal-authors-code": _CFAL,
    }
}


@dataclass(frozen=True)
class Dimension:
    """One field and its values.

    Attributes:
        field: as a flag names it, `loss.sigma` or `loss.options.factor`.
        choices: the values; empty for a range.
        low: smallest value of a range, > 0; the logarithm is drawn uniformly.
        high: largest value of a range.
    """

    field: str
    choices: tuple[Any, ...] = ()
    low: float = math.nan
    high: float = math.nan

    def suggest(self, trial: Trial) -> Any:
        """The value of this field in a trial."""
        if self.choices:
            return trial.suggest_categorical(self.field, self.choices)
        return trial.suggest_float(self.field, self.low, self.high, log=True)

    def holds(self, value: object) -> bool:
        """Whether the search can come to `value`."""
        if self.choices:
            return value in self.choices
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def as_plain(self) -> list[Any] | str:
        """As a space file writes it."""
        return list(self.choices) if self.choices else f"{self.low:g}..{self.high:g}"

    def __str__(self) -> str:
        values = ", ".join(map(str, self.choices)) if self.choices else self.as_plain()
        return f"{self.field} {values}"


def named(name: str, loss: str) -> list[Dimension]:
    """The space of that name for a loss, or the one in a YAML file.

    A file maps fields to a list of values, or to a range `1e-4..1e-2` with logarithmic steps.

    Raises:
        InputError: no such space or file, or one without values for this loss.
    """
    if name in SPACES:
        if loss not in SPACES[name]:
            raise InputError(
                f"the space {name!r} has nothing for loss {loss!r}; say what to search with --vary"
            )
        return [_dimension(field, values) for field, values in SPACES[name][loss].items()]
    if not Path(name).is_file():
        raise InputError(f"{name}: no such file, and no space of that name; there is: paper")
    return read(name)


def read(file: str | os.PathLike[str]) -> list[Dimension]:
    """The space in a YAML file.

    Raises:
        InputError: the file is not readable, or not of that form.
    """
    import yaml

    try:
        plain = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: {configuration.one_line(error)}; give a YAML file") from error
    if not isinstance(plain, dict) or not plain:
        raise InputError(f"{file}: not a space; write lines such as 'loss.sigma: [80, 130]'")
    try:
        return [_dimension(str(field), values) for field, values in plain.items()]
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def parse(text: str) -> Dimension:
    """A dimension from `FIELD=VALUE,VALUE,...` or `FIELD=LOW..HIGH`.

    Example:
        >>> parse("loss.sigma=80,130,auto").choices
        (80, 130, 'auto')

    Raises:
        InputError: of neither form.
    """
    field, equals, values = text.partition("=")
    if not equals or not field or not values:
        raise InputError(f"--vary {text}: write FIELD=VALUE,VALUE or FIELD=LOW..HIGH")
    if ".." in values:
        return _dimension(field, values)
    return _dimension(field, [_value(each) for each in values.split(",")])


def merge(dimensions: Iterable[Dimension]) -> list[Dimension]:
    """One dimension per field; of two the later one, in the place of the first."""
    return list({each.field: each for each in dimensions}.values())


def check(space: Sequence[Dimension], base: Config) -> None:
    """Check that every value of every dimension fits the configuration.

    Raises:
        InputError: a field that does not exist, or a value that it does not take.
    """
    if not space:
        raise InputError("nothing to search; name a space with --space or a field with --vary")
    for dimension in space:
        if dimension.field.startswith(("seeds.", "data.split", "data.test")):
            raise InputError(
                f"--vary {dimension.field}: a search does not choose its split or seeds; give one "
                f"value with --{dimension.field}"
            )
    columns = [each.choices or (each.low, each.high) for each in space]
    for number in range(max(map(len, columns))):
        # Values side by side, so that the configuration is parsed as seldom as can be.
        row = [column[min(number, len(column) - 1)] for column in columns]
        configuration.override(
            base, {each.field: value for each, value in zip(space, row, strict=True)}
        )


def size(space: Sequence[Dimension]) -> int | None:
    """Number of points; None where a range makes it infinite."""
    return math.prod(len(each.choices) for each in space) if all(e.choices for e in space) else None


def _dimension(field: str, values: object) -> Dimension:
    if isinstance(values, str):
        low, _, high = values.partition("..")
        try:
            ends = float(low), float(high)
        except ValueError:
            ends = math.nan, math.nan
        if not 0 < ends[0] < ends[1] < math.inf:
            raise InputError(
                f"{field}: {values!r} is no range; write LOW..HIGH with 0 < LOW < HIGH"
            )
        return Dimension(field, low=ends[0], high=ends[1])
    if not isinstance(values, Sequence) or not values:
        raise InputError(f"{field}: {values!r} is no list of values; write [80, 130] or LOW..HIGH")
    return Dimension(field, tuple(dict.fromkeys(values)))


def _value(text: str) -> object:
    words: dict[str, object] = {"true": True, "false": False, "null": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
