"""The code in the README runs as printed, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import cfal_kernels as cfal
from cfal_kernels import _build

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MARK = "<!-- this block is run by tests/test_readme.py -->\n```python\n"

pytestmark = pytest.mark.skipif(
    not README.is_file(), reason="runs in the source checkout, which holds README.md"
)


def blocks() -> list[str]:
    return [part.split("```")[0] for part in README.read_text().split(MARK)[1:]]


@pytest.fixture
def names() -> dict:
    """What the README takes as given: a backbone, data, class counts."""
    images = torch.randn(96, 3, 8, 8)
    target = torch.arange(96) % 9
    images = images + 0.3 * target[:, None, None, None]
    return {
        "torch": torch,
        "nn": nn,
        "cfal": cfal,
        "backbone": nn.Sequential(nn.Flatten(), nn.Linear(192, 128)),
        "loader": [(images, target)] * 5,
        "images": images,
        "target": target,
        "counts": [900, 700, 500, 300, 200, 100, 80, 60, 40],
    }


def run(index: int, names: dict) -> dict:
    exec(compile(blocks()[index], f"README.md, block {index}", "exec"), names)
    return names


def test_every_python_block_is_run():
    assert len(blocks()) == README.read_text().count("```python") == 4


def test_the_example_trains_and_predicts(names):
    names = run(0, names)
    head, loss_fn = names["head"], names["loss_fn"]
    assert loss_fn.prototypes is head.prototypes and list(loss_fn.parameters()) == []
    assert head.prototypes.grad.abs().sum() > 0.0
    assert names["classes"].shape == (96,)
    assert torch.allclose(names["posteriors"].sum(1), torch.ones(96))
    assert torch.equal(names["posteriors"].argmax(1), names["classes"])


def test_the_loss_that_owns_its_prototypes(names):
    names = run(1, names)
    assert names["loss"].isfinite() and names["classes"].shape == (96,)
    held = [p for group in names["optimizer"].param_groups for p in group["params"]]
    assert any(p is names["loss_fn"].prototypes for p in held)


def test_a_width_and_a_start_from_data(names):
    names = run(2, names)
    head, features = names["head"], names["features"]
    assert head.sigma > 0.0
    means = torch.stack([features[names["target"] == c].mean(0) for c in range(9)])
    assert torch.allclose(head.prototypes[:, 0], means, atol=1e-5)


@pytest.mark.skipif(
    _build.find(_build.NUMPY_DOOR) is None, reason="the NumPy door is not part of this build"
)
def test_numpy(names):
    names = run(3, names)
    expected = cfal.reference.cfal_loss(
        *(torch.from_numpy(names[n]) for n in ("features", "prototypes", "target")), sigma=256.0
    )
    assert float(names["loss"]) == pytest.approx(expected.item(), rel=1e-12)
    assert names["grad_features"].shape == (32, 128)
    assert names["grad_prototypes"].shape == (9, 128)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs"])
def test_links_lead_to_files(page):
    pages = sorted((ROOT / page).glob("*.md")) if (ROOT / page).is_dir() else [ROOT / page]
    for path in pages:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
            if "://" not in link:
                assert (path.parent / link).exists(), f"{path.name} links to {link}"
