"""One file with everything that a prediction needs: `model.safetensors`.

Weights, class names, preprocessing, model and loss lie in one safetensors file, the latter four as
JSON in its metadata. Reading it executes no code, with one exception that has to be allowed: a
model that was named by its import path.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from cfal_experiments import classifier as systems
from cfal_experiments.atomic import replacing
from cfal_experiments.classifier import Classifier
from cfal_experiments.data.normalisation import Normalisation
from cfal_experiments.errors import InputError
from cfal_experiments.training.config import LossConfig, ModelConfig

FORMAT = "cfal-model-1"


@dataclass(frozen=True)
class Description:
    """What the metadata of a model file says.

    Attributes:
        class_names: in the order of the posteriors.
        class_counts: images per class that it learned from.
        size: side of the input in pixels.
        normalisation: per-channel constants.
        model: name and options of the model.
        loss: name and options of the loss; `sigma` is the one that was used.
        version: of this package.
    """

    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    size: int
    normalisation: Normalisation
    model: ModelConfig
    loss: LossConfig
    version: str


def save(classifier: Classifier, description: Description, file: Path) -> None:
    """Write a model file, whole or not at all."""
    # Weights come from the file itself later, not from where training took them.
    model = dataclasses.replace(description.model, weights=None)
    plain = asdict(dataclasses.replace(description, model=model))
    plain["fitted"] = {"sigma": getattr(classifier.loss, "sigma", None)}
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()
    }
    with replacing(file) as stream:
        # One key: safetensors writes several in an order of its own, another in every process, and
        # equal runs are to have equal files.
        stream.write(to_bytes(tensors, {FORMAT: json.dumps(plain)}))


def load(file: Path, *, allow_import: bool = False) -> tuple[Classifier, Description]:
    """The system in a model file, in evaluation mode, on the CPU.

    Args:
        file: written by `save`.
        allow_import: build a model that the file names by import path, which runs that code.

    Raises:
        InputError: the file is missing, damaged or no model file; or needs `allow_import`.

    Example:
        >>> classifier, description = load(Path("run/model.safetensors"))
        >>> posteriors = classifier.predict_proba(images)
    """
    tensors, description = read(file)
    if ":" in description.model.name and not allow_import:
        raise InputError(
            f"{file}: its model is built by {description.model.name!r}, code outside this package; "
            f"give --allow-import if you trust the file"
        )
    # The state holds the prototypes and the fitted sigma: nothing is left to take from data.
    model = systems.build_model(description.model)
    built = systems.build(
        model, description.loss, description.class_counts, description.normalisation
    )
    try:
        built.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{file}: its weights do not fit model {description.model.name!r} with loss "
            f"{description.loss.name!r}; the file is damaged or of another version"
        ) from error
    return built.eval(), description


def read(file: Path) -> tuple[dict[str, Any], Description]:
    """Tensors and description of a model file; no model is built and no code is run.

    Raises:
        InputError: the file is missing, damaged or no model file.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if FORMAT not in metadata:
                raise InputError(f"{file}: not a model of this package; give a run's model file")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        plain = json.loads(metadata[FORMAT])
        return tensors, Description(
            class_names=tuple(plain["class_names"]),
            class_counts=tuple(plain["class_counts"]),
            size=int(plain["size"]),
            normalisation=Normalisation(
                tuple(plain["normalisation"]["mean"]), tuple(plain["normalisation"]["std"])
            ),
            model=ModelConfig(**plain["model"]),
            loss=LossConfig(**plain["loss"]),
            version=str(plain["version"]),
        )
    except FileNotFoundError as error:
        raise InputError(
            f"{file}: no such model; finish the run with 'cfal train --resume {file.parent}'"
        ) from error
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: damaged model file ({error}); export it again") from error
