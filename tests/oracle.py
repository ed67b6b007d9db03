"""The vectors recorded from the authors' Keras code: where they are and how a test reads them.

They lie outside the repository: in ../shared/oracle beside it, or in $CFAL_SHARED/oracle.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("CFAL_SHARED", ROOT.parent / "shared")) / "oracle"
NAMES = (
    "c01", "c02", "c03", "c04", "c05_crc_best", "c06_idc_best", "c07",
    "x01_far", "x02_near_g0.5", "x04_near_g0",
)  # fmt: skip

requires_oracle = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no oracle vectors in {FOLDER}; set CFAL_SHARED to their parent"
)


@dataclass(frozen=True)
class Case:
    """One file of vectors; `arrays` holds everything in it."""

    name: str
    arrays: dict[str, np.ndarray]

    def tensor(self, key: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key].copy()).to(dtype)

    def inputs(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features [B, D] and prototypes [C, M, D] that require grad, and targets [B]."""
        f, w = self.tensor("f", dtype), self.tensor("W", dtype)
        return f.requires_grad_(), w.requires_grad_(), torch.from_numpy(self.arrays["y"].copy())

    def keywords(self, dtype: torch.dtype) -> dict:
        """The keywords of cfal_loss that reproduce `cfal`."""
        return {
            "class_weights": self.tensor("class_weights", dtype),
            "sigma": float(self.arrays["sigma"]),
            "margin": float(self.arrays["lam"]),
            "gamma": float(self.arrays["gamma"]),
        }

    def tolerance(self, dtype: torch.dtype) -> float:
        """Norm-wise relative error that a backend may show."""
        if dtype == torch.float32:
            return 1e-5
        # Keras computes 1 - d next to a prototype: its own digits end there.
        return 1e-8 if self.name.startswith("x02") else 1e-12


@cache
def load(name: str) -> Case:
    with np.load(FOLDER / f"{name}.npz") as archive:
        return Case(name, dict(archive))
