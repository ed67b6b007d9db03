"""Models that live outside this package, named by import path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from cfal_experiments.errors import InputError


def build(path: str, options: Mapping[str, Any]) -> nn.Module:
    """The model that a class or function of another module returns.

    The model must map images `[B, 3, S, S]` to `[B, D]`. Its attribute `input_size` says S; where
    it has none, the option `input_size` does. D is found by trying one image of zeros.

    Args:
        path: "package.module:callable"; importing it executes that module's code.
        options: keyword arguments for the callable.

    Returns:
        The model, with `embedding_dim` and `input_size` set.

    Raises:
        InputError: nothing importable there, options that it refuses, or a model that does not map
            an image to a vector.

    Example:
        >>> build("my_package.networks:resnet18", {"input_size": 224, "width": 2})
    """
    target = find(path)
    given = dict(options)
    size = given.get("input_size")
    if size is not None and not _accepts(target, "input_size"):
        del given["input_size"]
    try:
        model = target(**given)
    except (TypeError, ValueError) as error:
        raise InputError(f"model {path}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model {path} returned {type(model).__name__}, not a torch.nn.Module")
    if not isinstance(getattr(model, "input_size", None), int):
        if size is None:
            raise InputError(
                f"model {path} has no attribute input_size; give the option input_size"
            )
        model.input_size = size
    found = _try(path, model)
    if getattr(model, "embedding_dim", found) != found:
        raise InputError(
            f"model {path} says embedding_dim = {model.embedding_dim}, but returns vectors of "
            f"{found}"
        )
    model.embedding_dim = found
    return model


def find(path: str) -> Callable[..., Any]:
    """The class or function at "package.module:callable".

    Raises:
        InputError: there is none.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise InputError(f"model {path!r} is no import path of the form package.module:callable")
    try:
        target = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{module_name}.".startswith(f"{missing}."):
            raise InputError(
                f"model {path}: there is no module {missing}; is its folder on PYTHONPATH?"
            ) from error
        raise InputError(
            f"model {path}: {module_name} needs {missing}, which is missing"
        ) from error
    except Exception as error:  # a module of the user's may fail in any way while it is imported
        raise InputError(
            f"model {path}: importing {module_name} failed with {type(error).__name__}: {error}"
        ) from error
    for part in name.split("."):
        if not hasattr(target, part):
            raise InputError(f"model {path}: {module_name} has no {name}")
        target = getattr(target, part)
    if not callable(target):
        raise InputError(f"model {path}: {name} is {type(target).__name__}, not callable")
    return target


def _accepts(target: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(target).parameters.values()
    return any(p.name == name or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


@torch.no_grad()
def _try(path: str, model: nn.Module) -> int:
    """The length of the vectors that the model returns."""
    training = model.training
    model.eval()
    images = torch.zeros(1, 3, model.input_size, model.input_size)
    try:
        features = model(images)
    except Exception as error:
        raise InputError(f"model {path} fails on an image {list(images.shape)}: {error}") from error
    finally:
        model.train(training)
    shape = list(getattr(features, "shape", ()))
    if len(shape) != 2 or shape[0] != 1:
        raise InputError(
            f"model {path} maps an image {list(images.shape)} to {shape or type(features).__name__}"
            f"; it must be a vector [1, D]"
        )
    return shape[1]
