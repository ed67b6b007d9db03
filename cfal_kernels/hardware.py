"""The hardware record: which backends have passed every gate on a real GPU, and where.

No GPU kernel is chosen by `auto` on the strength of having compiled. `make gpu` runs the gates of a
backend on a device and appends a `Pass` to ``hardware.json`` beside this file, for the regimes (few
or many prototypes) all of whose gates passed. The file is read once, when this module is imported:
the choice of a backend asks no device anything.
This module needs no torch.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from . import _regime

FILE = Path(__file__).with_name("hardware.json")

#: The backends that need a pass before `auto` takes them. Those of the CPU run in every CI.
RECORDED = ("cuda", "triton")


@dataclass(frozen=True)
class Pass:
    """One run in which kernels of a backend passed every gate on a device.

    Attributes:
        regimes: which kernels passed: "few", "many" or both.
        gpu: name of the device.
        compute_capability: as in "9.0".
        driver: version of the driver.
        torch: version of torch.
        toolchain: what compiled the kernels, as in "triton 3.6.0" or "CUDA 13.0".
        commit: of the checkout, "unknown" where there was no git.
        sources: digest of the package's and the kernels' source files, which git does not need.
        date: of the run, ISO.
        passed: number of tests passed.
        skipped: number of tests skipped.
    """

    regimes: tuple[str, ...]
    gpu: str
    compute_capability: str
    driver: str
    torch: str
    toolchain: str
    commit: str
    sources: str
    date: str
    passed: int
    skipped: int

    def __str__(self) -> str:
        return (
            f"{self.gpu} (compute capability {self.compute_capability}), driver {self.driver}, "
            f"torch {self.torch}, {self.toolchain}, commit {self.commit}, {self.date}: "
            f"{self.passed} gates of {' and '.join(self.regimes)} prototypes passed"
        )


def read(path: Path = FILE) -> dict[str, tuple[Pass, ...]]:
    """The passes of each backend of `RECORDED`, oldest first; none where there is no file.

    Raises:
        ValueError: the file is no record; the message names it.
    """
    try:
        contents = json.loads(path.read_text())
    except FileNotFoundError:
        contents = {}
    except ValueError as error:
        raise ValueError(f"{path} is no hardware record: {error}") from None
    try:
        return {name: tuple(map(_entry, contents.get(name, ()))) for name in RECORDED}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no hardware record: {error}") from None


def _entry(plain: dict) -> Pass:
    entry = Pass(**plain)
    return dataclasses.replace(entry, regimes=tuple(entry.regimes))


def append(backend: str, entry: Pass, path: Path = FILE) -> None:
    """Adds a pass to the record; the last one of the same GPU and sources replaces an earlier one.

    Raises:
        ValueError: `backend` is not one of `RECORDED`.
    """
    if backend not in RECORDED:
        raise ValueError(f"backend must be one of {', '.join(RECORDED)}, got {backend!r}")
    passes = read(path)
    same = (entry.gpu, entry.sources)
    kept = [e for e in passes[backend] if (e.gpu, e.sources) != same]
    contents = {**passes, backend: [*kept, entry]}
    plain = {name: [dataclasses.asdict(e) for e in entries] for name, entries in contents.items()}
    path.write_text(json.dumps(plain, indent=2) + "\n")


#: Passes by backend.
passes = read()


def withheld(backend: str, regime: int) -> str:
    """Why `auto` does not take a backend that could serve a call of this regime, or "" if it may.

    Example:
        >>> withheld("cpu", _regime.FEW)
        ''
    """
    if backend not in RECORDED:
        return ""
    name = _regime.NAMES[regime]
    if any(name in entry.regimes for entry in passes[backend]):
        return ""
    return (
        f"it could serve, but has not passed on real hardware yet; backend={backend!r} asks for "
        f"it, and `make gpu` records a pass"
    )
