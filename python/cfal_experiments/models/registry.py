"""Models by name or import path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cfal_experiments import factory
from cfal_experiments.models import imported
from cfal_experiments.models.alexnet import AlexNet32
from cfal_experiments.models.alexnet_wide import WideAlexNet
from cfal_experiments.models.base import EmbeddingModel
from cfal_experiments.models.cct import CCT
from cfal_experiments.models.vgg import VGG19

MODELS: Mapping[str, type[EmbeddingModel]] = {
    "alexnet32": AlexNet32,
    "alexnet32-wide": WideAlexNet,
    "vgg19": VGG19,
    "cct": CCT,
}


def build(name: str, **options: Any) -> nn.Module:
    """The model called `name`.

    Args:
        name: a key of `MODELS`, or "package.module:callable" for a class or function that returns a
            model of images `[B, 3, S, S]`; see `imported.build`.
        **options: those of the model; see `options`.

    Returns:
        A module with the attributes `embedding_dim` and `input_size`.

    Raises:
        InputError: an unknown name or option, naming the choices, or a value that does not fit.

    Example:
        >>> model = build("cct", positions="learnable")
        >>> model.embedding_dim, model.input_size
        (128, 112)
    """
    if ":" in name:
        return imported.build(name, options)
    model = factory.choose("model", name, MODELS, also="an import path package.module:callable")
    return factory.construct(f"model {name!r}", model, options=options)


def options(name: str) -> dict[str, Any]:
    """The options of a model and their defaults; of an import path, its keyword-only parameters.

    Raises:
        InputError: there is no such model.

    Example:
        >>> options("alexnet32")
        {'embedding_dim': 64}
    """
    if ":" in name:
        return factory.options_of(imported.find(name))
    return factory.options_of(factory.choose("model", name, MODELS))
