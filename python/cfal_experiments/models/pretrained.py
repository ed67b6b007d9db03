"""Weights from a public address or a local file, read without executing any code in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cfal_experiments.errors import InputError


def read(weights: str, url: str) -> dict[str, Tensor]:
    """A state dict.

    Args:
        weights: "imagenet" for the file at `url`, or the path of a local file.
        url: public address, whose file name carries the beginning of its SHA-256 as torch.hub
            expects it; the download is kept in torch.hub's cache and checked against that.

    Raises:
        InputError: the download failed or is damaged; no such file; not a state dict.
    """
    if weights != "imagenet":
        return _read_file(Path(weights))
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"the weights at {url} could not be fetched ({_line(error)}); fetch that file by other "
            f"means and give its path instead of 'imagenet'"
        ) from error


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"weights {path}: no such file; give 'imagenet' or the path of a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives raise many kinds; none of them is a bug here
        raise InputError(f"weights {path}: cannot be read ({_line(error)})") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"weights {path}: holds no state dict (names with tensors)")
    return dict(state)


def load_into(model: nn.Module, state: Mapping[str, Tensor], own: tuple[str, ...]) -> None:
    """Copy the entries of `state` that `model` has; entries beyond those are left alone.

    Args:
        model: takes the weights.
        state: under the model's names.
        own: prefixes of entries that the state cannot have, which keep their initial values.

    Raises:
        InputError: an entry that is missing or has another shape.
    """
    wanted = {name: v for name, v in model.state_dict().items() if not name.startswith(own)}
    for name, value in wanted.items():
        if name not in state:
            raise InputError(
                f"the weights have no entry {name}, which {type(model).__name__} needs; they begin "
                f"with {', '.join(list(state)[:3]) or 'nothing'}"
            )
        if state[name].shape != value.shape:
            raise InputError(
                f"the weights have {name} of shape {list(state[name].shape)}; "
                f"{type(model).__name__} needs {list(value.shape)}"
            )
    model.load_state_dict({name: state[name] for name in wanted}, strict=False)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
