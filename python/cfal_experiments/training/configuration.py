"""Reading and writing configurations: presets by name, YAML files, overriding flags.

A configuration is checked completely, types and unknown keys included, before anything else is
done. Nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from cfal_experiments import atomic
from cfal_experiments.errors import InputError
from cfal_experiments.training.config import SECTIONS, Config

SUFFIX = ".yaml"


def add_to(parser: ArgumentParser) -> None:
    """Give `parser` the option `--config` and one option per field of a configuration."""
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="a YAML file, or the name of a preset (`cfal presets list`); later flags override it",
    )
    for key, section in SECTIONS.items():
        parser.add_class_arguments(section, key)
    # jsonargparse gives each section an option for a file of its own; `--data` means the images.
    for action in parser._actions:
        if action.dest == "data":
            action.metavar, action.help = "PATH", "the images; short for --data.path"


def shorthands(arguments: Sequence[str]) -> list[str]:
    """Spell out `--data PATH` and `--config PRESET`.

    Example:
        >>> shorthands(["--data", "patches"])
        ['--data.path', 'patches']

    Raises:
        InputError: `--config` names neither a file nor a preset.
    """
    result: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "--data":
            argument = f"--data.path{equals}{value}"
        elif name == "--config" and equals:
            argument = f"--config={find(value)}"
        elif result and result[-1] == "--config":
            argument = find(argument)
        result.append(argument)
    return result


def from_namespace(parser: ArgumentParser, namespace: Namespace) -> Config:
    """The configuration among parsed arguments.

    Raises:
        InputError: a value out of range.
    """
    built = parser.instantiate(namespace)
    return Config(**{key: built[key] for key in SECTIONS})


def parse(arguments: Sequence[str]) -> Config:
    """A configuration from flags alone, as `cfal train` takes them.

    Example:
        >>> parse(["--config", "idc_cfal", "--loss.sigma", "100"]).loss.sigma
        100.0

    Raises:
        InputError: an unknown file, key or value.
    """
    return _checked(lambda parser: parser.parse_args(shorthands(arguments)))


def load(name: str | os.PathLike[str]) -> Config:
    """The configuration in a file, or the preset of that name.

    Raises:
        InputError: no such file or preset, or one that holds an unknown key or value.
    """
    try:
        return parse(["--config", os.fspath(name)])
    except InputError as error:
        if str(name) in str(error):
            raise
        raise InputError(f"{name}: {error}") from error


def override(config: Config, values: Mapping[str, object]) -> Config:
    """A copy with other values of some fields, named as flags name them.

    Example:
        >>> override(Config(), {"loss.sigma": "auto", "loss.options.factor": "one-plus"}).loss.sigma
        'auto'

    Raises:
        InputError: no such field, or a value that it does not take.
    """
    plain = config.as_dict()
    for field, value in values.items():
        *path, name = field.split(".")
        section = plain
        for key in path:
            section = section.get(key) if isinstance(section, dict) else None
        if not path or not isinstance(section, dict):
            raise InputError(f"{field}: no such field; 'cfal train --help' lists them")
        section[name] = value
    return _checked(lambda parser: parser.parse_object(plain))


def save(config: Config, path: Path) -> None:
    """Write a configuration, whole or not at all, so that `load` gives it back."""
    atomic.write_text(path, _as_yaml(config.as_dict()))


def save_preset(config: Config, path: Path, header: Sequence[str]) -> None:
    """Write a configuration as a preset, with comment lines before it, whole or not at all."""
    text = "".join(f"# {line}".rstrip() + "\n" for line in header)
    plain = without_places(config)
    plain["training"].pop("threads", None)  # of a machine, not of the settings
    atomic.write_text(path, text + _as_yaml(plain))


def without_places(config: Config) -> dict[str, Any]:
    """What was chosen, as plain nested dictionaries: neither where the images are nor empty fields.

    Example:
        >>> without_places(Config())["seeds"]
        {'init': 0, 'order': 0, 'augmentation': 0, 'split': 0}
    """
    places = {"path", "test_path", "test_names", "cache_folder"}
    if config.data.long_tail is None:
        places.add("long_tail_ends")
    return {
        key: {
            name: value
            for name, value in section.items()
            if value not in (None, {}) and not (key == "data" and name in places)
        }
        for key, section in config.as_dict().items()
    }


def _as_yaml(plain: dict[str, Any]) -> str:
    import yaml

    if "long_tail_ends" in plain["data"]:
        plain["data"]["long_tail_ends"] = list(plain["data"]["long_tail_ends"])
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _checked(read: Callable[[ArgumentParser], Namespace]) -> Config:
    parser = ArgumentParser(prog="cfal train", exit_on_error=False)
    add_to(parser)
    try:
        return from_namespace(parser, read(parser))
    except InputError:
        raise
    except Exception as error:  # jsonargparse raises several kinds, none with a base of its own
        raise InputError(one_line(error)) from error


def presets() -> dict[str, Path]:
    """The presets that come with the package, by name."""
    folder = Path(str(resources.files("cfal_experiments"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def find(name: str) -> str:
    """The path of a configuration file, given itself or as the name of a preset.

    Raises:
        InputError: neither a file nor a preset.
    """
    if Path(name).is_file():
        return name
    # `configs/idc_cfal.yaml` is also found from elsewhere than the repository.
    known = presets()
    stem = Path(name).name.removesuffix(SUFFIX)
    if stem in known and Path(name).parent.name in ("", "configs"):
        return str(known[stem])
    raise InputError(
        f"{name}: no such file, and no preset of that name; `cfal presets list` shows the presets"
    )


def one_line(error: BaseException) -> str:
    r"""The message of an exception on one line, without the indentation of nested ones.

    Example:
        >>> one_line(ValueError("wrong:\n  - the first  reason"))
        'wrong: the first reason'
    """
    parts = (line.strip().removeprefix("- ") for line in str(error).splitlines())
    return " ".join(" ".join(part for part in parts if part).split()) or repr(error)
