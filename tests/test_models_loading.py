"""Pretrained weights and models named by import path: what fits, and what is told otherwise."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from cfal_experiments import models
from cfal_experiments.errors import InputError
from cfal_experiments.models import pretrained, vgg


@pytest.fixture
def layer() -> nn.Module:
    return nn.ModuleDict({"features": nn.Linear(3, 2), "embedding": nn.Linear(2, 2)})


@pytest.fixture
def public_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as torch's download site has them: eight digits of its SHA-256 in the name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    state = {"features.weight": torch.ones(2, 3), "features.bias": torch.zeros(2)}
    torch.save(state, tmp_path / "plain.pth")
    digest = hashlib.sha256((tmp_path / "plain.pth").read_bytes()).hexdigest()
    return (tmp_path / "plain.pth").rename(tmp_path / f"net-{digest[:8]}.pth")


def test_vgg19_takes_torchvisions_weights(monkeypatch: pytest.MonkeyPatch):
    shapes = {}
    with torch.device("meta"):
        reference = models.build("vgg19", head="imagenet")
    for name, value in reference.state_dict().items():
        if name.startswith("features."):
            shapes[name] = value.shape
    public = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    public["classifier.6.weight"] = torch.zeros(1000, 4096)  # the layer that is left behind
    asked = []
    monkeypatch.setattr(pretrained, "read", lambda *given: asked.append(given) or public)
    model = models.build("vgg19", weights="imagenet", embedding_dim=64)
    assert asked == [("imagenet", vgg.IMAGENET)]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in public.items()
               if name.startswith("features."))  # fmt: skip
    assert model.embedding.weight.std() > 0


def test_public_weights_are_fetched_and_checked(public_file: Path):
    state = pretrained.read("imagenet", public_file.as_uri())
    assert torch.equal(state["features.weight"], torch.ones(2, 3))


def test_a_damaged_download_is_refused(public_file: Path):
    public_file.write_bytes(public_file.read_bytes() + b"x")
    with pytest.raises(InputError, match="could not be fetched.*hash.*other means"):
        pretrained.read("imagenet", public_file.as_uri())


def test_an_unreachable_address_says_what_else_to_do(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="could not be fetched.*give its path instead"):
        pretrained.read("imagenet", (tmp_path / "absent-01234567.pth").as_uri())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_files_load(layer: nn.Module, tmp_path: Path, suffix: str):
    state = {"features.weight": torch.ones(2, 3), "features.bias": torch.ones(2)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    before = layer["embedding"].weight.clone()
    pretrained.load_into(layer, pretrained.read(str(path), "unused"), own=("embedding.",))
    assert torch.equal(layer["features"].bias, torch.ones(2))
    assert torch.equal(layer["embedding"].weight, before)


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"not a checkpoint"), "cannot be read"),
        (lambda path: path.write_bytes(pickle.dumps(Malicious(), protocol=2)), "cannot be read"),
        (lambda path: torch.save({"model": {"a": torch.ones(1)}}, path), "no state dict"),
        (lambda path: torch.save([torch.ones(1)], path), "no state dict"),
    ],
    ids=["absent", "garbage", "code", "nested", "list"],
)
def test_an_unusable_file_is_named_and_not_executed(write, words: str, tmp_path: Path, capsys):
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(InputError, match=words) as caught:
        pretrained.read(str(path), "unused")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"backbone.weight": torch.ones(1)}, r"no entry features.weight.*backbone.weight"),
        ({}, "begin with nothing"),
        ({"features.weight": torch.ones(2, 4)}, r"\[2, 4\].*\[2, 3\]"),
    ],
)
def test_weights_that_do_not_fit_are_told(layer: nn.Module, state: dict, words: str):
    with pytest.raises(InputError, match=words):
        pretrained.load_into(layer, state, own=("embedding.",))


NETWORKS = '''
import torch
from torch import nn

constant = 3

class Plain(nn.Module):
    """Says nothing about itself, as models of other libraries do."""

    def __init__(self, width=5):
        super().__init__()
        self.layer = nn.LazyLinear(width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.dropout(self.layer(images.mean((2, 3))))

class Complete(Plain):
    input_size = 24
    embedding_dim = 5

class Boastful(Plain):
    input_size = 24
    embedding_dim = 7

class Maps(Plain):
    input_size = 24

    def forward(self, images):
        return images

def sized(*, input_size=16, width=4):
    model = Plain(width)
    model.input_size = input_size
    return model

def no_model():
    return constant
'''


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "foreign_networks.py").write_text(NETWORKS)
    (tmp_path / "foreign_broken.py").write_text("1 / 0\n")
    (tmp_path / "foreign_needy.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("Complete", {}, (24, 5)),
        ("Plain", {"input_size": 20}, (20, 5)),
        ("Plain", {"input_size": 20, "width": 9}, (20, 9)),
        ("sized", {}, (16, 4)),
        ("sized", {"input_size": 40, "width": 2}, (40, 2)),
    ],
)
def test_any_model_can_be_named_by_import_path(name: str, options: dict, sizes: tuple[int, int]):
    model = models.build(f"foreign_networks:{name}", **options)
    assert (model.input_size, model.embedding_dim) == sizes
    assert model.training
    assert model(torch.zeros(2, 3, sizes[0], sizes[0])).shape == (2, sizes[1])


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        (":Plain", {}, "package.module:callable"),
        ("foreign_networks:", {}, "package.module:callable"),
        ("foreign_nowhere.deep:net", {}, "no module foreign_nowhere; is its folder on PYTHONPATH"),
        ("foreign_needy:net", {}, "needs not_installed_anywhere"),
        ("foreign_broken:net", {}, "ZeroDivisionError"),
        ("foreign_networks:Absent", {}, "has no Absent"),
        ("foreign_networks:constant", {}, "int, not callable"),
        ("foreign_networks:no_model", {}, "returned int"),
        ("foreign_networks:Plain", {}, "give the option input_size"),
        ("foreign_networks:Complete", {"depth": 3}, "depth"),
        ("foreign_networks:Boastful", {}, "says embedding_dim = 7, but returns vectors of 5"),
        ("foreign_networks:Maps", {}, r"must be a vector \[1, D\]"),
        ("torch.nn:Identity", {"input_size": 8}, r"must be a vector \[1, D\]"),
    ],
)
def test_an_import_path_that_does_not_work_is_told(path: str, options: dict, words: str):
    with pytest.raises(InputError, match=words) as caught:
        models.build(path, **options)
    assert path in str(caught.value) and "\n" not in str(caught.value)
