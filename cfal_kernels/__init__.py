"""Center-Focused Affinity Loss: fused kernels with a PyTorch API.

The names below are resolved on first use (PEP 562), so that ``import cfal_kernels`` costs nothing
and works without torch; `cfal_kernels.numpy` and `cfal_kernels.info` need no torch at all.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "cfal_loss": "functional",
    "CFALLoss": "loss",
    "AffinityLoss": "loss",
    "ClassBalancedAffinityLoss": "loss",
    "PrototypeHead": "head",
    "class_balanced_weights": "weights",
    "initialize_prototypes_": "initialization",
    "sigma_from_features": "initialization",
    "squared_distances": "distance",
    "explain": "backends",
    "build_info": "info",
    "CFALWarning": "diagnostics",
}
_SUBMODULES = (
    "backends",
    "diagnostics",
    "hardware",
    "info",
    "initialization",
    "numpy",
    "reference",
)

__all__ = [
    "AffinityLoss",
    "CFALLoss",
    "CFALWarning",
    "ClassBalancedAffinityLoss",
    "PrototypeHead",
    "__version__",
    "build_info",
    "cfal_loss",
    "class_balanced_weights",
    "diagnostics",
    "explain",
    "initialize_prototypes_",
    "reference",
    "sigma_from_features",
    "squared_distances",
]

if TYPE_CHECKING:
    from . import diagnostics, reference
    from .backends import explain
    from .diagnostics import CFALWarning
    from .distance import squared_distances
    from .functional import cfal_loss
    from .head import PrototypeHead
    from .info import build_info
    from .initialization import initialize_prototypes_, sigma_from_features
    from .loss import AffinityLoss, CFALLoss, ClassBalancedAffinityLoss
    from .weights import class_balanced_weights


def _import(submodule: str) -> ModuleType:
    try:
        return importlib.import_module(f".{submodule}", __name__)
    except ImportError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"cfal_kernels.{submodule} needs torch: pip install torch>=2.10 (cfal_kernels.numpy "
            f"and cfal_kernels.info do without)",
            name="torch",
        ) from error


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(_import(_HOME[name]), name)
    elif name in _SUBMODULES:
        value = _import(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_SUBMODULES})
