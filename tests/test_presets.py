"""Every preset of the package: it loads, it builds, and it holds what the paper prints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse")

from cfal_experiments import losses, models  # noqa: E402
from cfal_experiments.training import configuration  # noqa: E402

PRESETS = configuration.presets()
FOUR = {"cross_entropy", "cfal", "arcface", "cosface", "focal"}

# The betas of IDC leave its class weights at 1, and the loss says so; another file tests that.
pytestmark = pytest.mark.filterwarnings("ignore::cfal_kernels.diagnostics.CFALWarning")


def test_every_row_of_the_tables_has_a_preset():
    """Tables IV and V, XI and XII, XIII, XIV; what an ensemble needs is among them."""
    ablation = {"affinity", "class_balanced_affinity"}
    rows = {
        f"{data}_{loss}" for data in ("idc", "crc") for loss in FOUR | {"sphereface"} | ablation
    }
    rows |= {f"{kind}_{loss}" for kind in ("longtail", "cct") for loss in FOUR}
    extra = {f"{each}_authors_code" for each in ("idc_cfal", "crc_cfal", "idc_arcface",
             "idc_sphereface", "crc_sphereface")}  # fmt: skip
    extra.add("crc_kather_cross_entropy")
    extra |= {"idc_cfal_tuned", "idc_cross_entropy_tuned"}
    assert set(PRESETS) == rows | extra


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_its_model_and_loss(name: str):
    config = configuration.load(name)
    options = config.model.arguments()
    assert (options.pop("weights", None) == "imagenet") == (config.model.name == "vgg19")
    with torch.device("meta"):  # shapes only: VGG19 with its layers of 4096 has 139 M parameters
        model = models.build(config.model.name, **options)
    assert model.input_size == config.data.size
    classes = 2 if name.startswith("idc") else 9
    counts = [1000 + 100 * label for label in range(classes)]
    loss = losses.build(
        config.loss.name, classes, model.embedding_dim, counts, **config.loss.arguments()
    )
    features = torch.randn(4, model.embedding_dim)
    assert loss(features, torch.arange(4) % classes).isfinite()
    assert (config.data.batch_size, config.training.patience) == (32, 5)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_it_is_and_how_to_run_it(name: str):
    head = [line for line in PRESETS[name].read_text().splitlines() if line.startswith("#")]
    assert ("Table" in head[0]) != name.endswith("_tuned")
    assert any(f"cfal train --config {name} --data" in line for line in head)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("idc_cfal", {"beta": 0.999, "margin": 0.1, "sigma": 130.0, "gamma": 2.0}),
        ("crc_cfal", {"beta": 0.9999, "margin": 0.1, "sigma": 130.0, "gamma": 1.0}),
        ("idc_sphereface", {"scale": 30.0, "margin": 0.35}),
        ("crc_sphereface", {"scale": 20.0, "margin": 0.35}),
        ("idc_arcface", {"scale": 30.0, "margin": 0.5}),
        ("crc_arcface", {"scale": 15.0, "margin": 0.1}),
        ("idc_cosface", {"scale": 10.0, "margin": 0.5}),
        ("crc_cosface", {"scale": 20.0, "margin": 0.35}),
    ],
)
def test_presets_hold_the_values_of_table_ix(name: str, expected: dict):
    given = configuration.load(name).loss.arguments()
    assert {key: given[key] for key in expected} == expected


@pytest.mark.parametrize("name", ["idc_arcface", "idc_sphereface", "crc_sphereface"])
def test_the_authors_form_differs_in_the_margin_only(name: str):
    usual, authors = configuration.load(name), configuration.load(f"{name}_authors_code")
    assert usual.loss.options["monotone"] and not authors.loss.options["monotone"]
    usual.loss.options = authors.loss.options = {}
    assert usual == authors


@pytest.mark.parametrize("loss", sorted(FOUR))
def test_presets_of_a_loss_differ_in_the_data_only(loss: str):
    """Table XIII thins the training part of Table V and changes nothing else."""
    full, thinned = configuration.load(f"crc_{loss}"), configuration.load(f"longtail_{loss}")
    assert full.data.long_tail is None and thinned.data.long_tail == 58_000
    for section in ("model", "loss", "optimizer", "training", "seeds"):
        assert getattr(full, section) == getattr(thinned, section)


def test_the_document_names_every_preset():
    document = Path(__file__).resolve().parent.parent / "docs" / "reproducing.md"
    if not document.is_file():
        pytest.skip("the documents are in the repository, not in the wheel")
    text = document.read_text()
    assert [name for name in PRESETS if name not in text] == []
