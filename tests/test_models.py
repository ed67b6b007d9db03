"""The models of the paper: parameter counts, shapes, names, options."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from cfal_experiments import losses, models
from cfal_experiments.errors import InputError
from cfal_experiments.models.cct import CCT, Attention, Block, Tokenizer

every_model = pytest.mark.parametrize("name", models.MODELS)


def trainable(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def test_alexnet_has_the_parameters_of_the_baseline():
    model = models.build("alexnet32")
    assert trainable(model, losses.build("cross-entropy", 2, 64, [1, 1])) == 145_058


def test_wide_alexnet_has_two_fully_connected_layers():
    model = models.build("alexnet32-wide", embedding_dim=100)
    weights = [p for p in model.parameters() if p.dim() > 1]
    assert [tuple(w.shape[:2]) for w in weights[:5]] == [
        (64, 3), (192, 64), (384, 192), (256, 384), (256, 256),
    ]  # fmt: skip
    assert [tuple(w.shape) for w in weights[5:]] == [(1024, 256 * 4 * 4), (100, 1024)]


@pytest.mark.parametrize(
    ("positions", "count"),
    [("fixed", 408_001), ("learnable", 408_001 + 784 * 128), ("none", 408_001)],
)
def test_cct_has_the_parameters_of_the_paper(positions: str, count: int):
    model = models.build("cct", positions=positions)
    assert trainable(model, losses.build("cfal", 9, 128, [1] * 9)) == count
    assert ("positions" in model.state_dict()) == (positions != "none")


def test_vgg19_has_the_parameters_and_names_of_torchvision():
    """143,667,240 in torchvision, whose last layer maps 4096 to 1000 classes."""
    with torch.device("meta"):
        whole = models.build("vgg19", head="imagenet", embedding_dim=64)
        pooled = models.build("vgg19", embedding_dim=64)
    own = 4096 * 64 + 64
    assert trainable(whole) - own == 143_667_240 - (4096 * 1000 + 1000)
    assert trainable(pooled) == 20_024_384 + 512 * 64 + 64
    convolutions = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
    names = [f"features.{number}" for number in convolutions] + ["classifier.0", "classifier.3"]
    names = [f"{name}.{part}" for name in [*names, "embedding"] for part in ("weight", "bias")]
    assert list(whole.state_dict()) == names


@every_model
def test_images_become_vectors(name: str):
    model = models.build(name)
    size = model.input_size
    features = model(torch.randn(2, 3, size, size))
    assert features.shape == (2, model.embedding_dim)
    assert features.isfinite().all()
    # Untrained, but neither dead nor exploding: the two images differ at a moderate scale.
    assert 1e-3 < (features[0] - features[1]).abs().max() < 1e2


@every_model
def test_embedding_dim_is_an_option(name: str):
    with torch.device("meta"):
        model = models.build(name, embedding_dim=96)
        assert model.embedding_dim == 96
        assert model(torch.empty(1, 3, model.input_size, model.input_size)).shape == (1, 96)


@pytest.mark.parametrize(("name", "size"), [("alexnet32-wide", 50), ("vgg19", 224), ("cct", 45)])
def test_input_size_is_an_option(name: str, size: int):
    with torch.device("meta"):
        model = models.build(name, input_size=size)
        assert model(torch.empty(1, 3, size, size)).shape == (1, model.embedding_dim)


@every_model
def test_images_of_another_size_are_told(name: str):
    with torch.device("meta"):
        model = models.build(name)
        with pytest.raises(ValueError, match=rf"3, {model.input_size}.*\[1, 3, 31, 33\]"):
            model(torch.empty(1, 3, 31, 33))


@pytest.mark.parametrize("name", ["alexnet32", "cct"])
def test_gradient_reaches_every_parameter(name: str):
    torch.manual_seed(0)
    model = models.build(name)
    loss = losses.build("cfal", 3, model.embedding_dim, [5, 5, 5])
    images = torch.randn(6, 3, model.input_size, model.input_size)
    loss(model(images), torch.arange(6) % 3).backward()
    # A key's bias shifts all scores of a query alike: softmax, and so the loss, does not see it.
    silent = {f"blocks.{number}.attention.key.bias" for number in range(2)} | {"pool.bias"}
    for parameter_name, parameter in model.named_parameters():
        if parameter_name not in silent:
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["alexnet32", "cct"])
def test_compiles_without_a_graph_break(name: str):
    model = models.build(name).eval()
    images = torch.randn(2, 3, model.input_size, model.input_size)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("alexnet", {}, ["no model called 'alexnet'", "'alexnet32'", "import path"]),
        ("alexnet32", {"weights": "imagenet"}, ["'alexnet32'", "'weights'", "embedding_dim"]),
        ("cct", {"positions": "sine"}, ["positions must be fixed, learnable or none"]),
        ("cct", {"blocks": 0}, ["at least 1"]),
        ("cct", {"stochastic_depth": 1.0}, ["stochastic_depth"]),
        ("vgg19", {"head": "flat"}, ["head must be pooled or imagenet"]),
        ("vgg19", {"input_size": 16}, ["input_size must be at least 32"]),
        ("alexnet32", {"embedding_dim": 0}, ["embedding_dim must be at least 1"]),
    ],
)
def test_a_wrong_name_or_option_is_told(name: str, options: dict, words: list[str]):
    with pytest.raises(InputError) as caught:
        models.build(name, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


class TestCCT:
    """The parts whose definition differs from the common one, against that definition."""

    def test_attention_is_scaled_by_the_width_of_a_head(self):
        attention = Attention(width=12, heads=3, dropout=0.0).double()
        tokens = torch.randn(2, 7, 12, dtype=torch.float64)
        heads = []
        for head in range(3):
            rows = slice(12 * head, 12 * head + 12)
            q, k, v = (
                functional.linear(tokens, layer.weight[rows], layer.bias[rows])
                for layer in (attention.query, attention.key, attention.value)
            )
            heads.append((q @ k.transpose(1, 2) / math.sqrt(12)).softmax(-1) @ v)
        expected = attention.out(torch.cat(heads, dim=-1))
        torch.testing.assert_close(attention(tokens), expected)

    @pytest.mark.parametrize("size", [8, 9, 10, 11, 112])
    def test_pooling_is_the_same_of_tensorflow(self, size: int):
        """ceil(n / 2) windows of 3; the padding goes evenly around, the odd one to the end."""
        tokenizer = Tokenizer(16)
        images = torch.randn(2, 3, size, size)
        maps = images
        for convolution in tokenizer.convolutions:
            maps = functional.pad(functional.relu(convolution(maps)), (1, 1, 1, 1))
            count = math.ceil(maps.shape[-1] / 2)
            total = max(0, (count - 1) * 2 + 3 - maps.shape[-1])
            padding = (total // 2, total - total // 2) * 2
            maps = functional.max_pool2d(functional.pad(maps, padding, value=-math.inf), 3, 2)
            assert maps.shape[-1] == count
        assert torch.equal(tokenizer(images), maps.flatten(2).transpose(1, 2))
        assert maps.shape[-1] == Tokenizer.side(size)

    def test_fixed_positions_are_saved_and_never_trained(self):
        model = CCT(input_size=16)
        assert "positions" not in dict(model.named_parameters())
        other = CCT(input_size=16)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.positions, model.positions)
        assert model.positions.abs().max() <= 0.05

    def test_depths_rise_from_zero(self):
        rates = [block.drop_path for block in CCT(blocks=3, stochastic_depth=0.2).blocks]
        assert rates == pytest.approx([0.0, 0.1, 0.2])

    def test_dropped_paths_are_whole_samples_and_keep_the_mean(self):
        block = Block(width=4, heads=1, dropout=0.0, drop_path=0.25)
        path = torch.ones(4000, 2, 4)
        thinned = block._thinned(path)
        per_sample = thinned.flatten(1)
        assert (per_sample == per_sample[:, :1]).all()
        assert per_sample[:, 0].unique().tolist() == pytest.approx([0.0, 4 / 3])
        assert thinned.mean().item() == pytest.approx(1.0, abs=0.05)
        assert torch.equal(block.eval()._thinned(path), path)

    def test_pooling_is_an_average_that_is_learnt(self):
        """Tokens without a difference are pooled to themselves, whatever the weights."""
        model = CCT(input_size=8, positions="none").eval()
        images = torch.zeros(1, 3, 8, 8)  # no bias in the tokenizer: every token is zero
        tokens = model.norm(model.blocks(model.tokenizer(images)))
        torch.testing.assert_close(model(images), tokens[:, 0])
