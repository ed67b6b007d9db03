"""Batches: the same after a resume, on every rank and in any batch; flips and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfal_experiments.data import IMAGENET, ImageSet, Normalisation
from cfal_experiments.data.loading import EpochOrder, Normalise, flip, make_loader


@pytest.fixture
def data() -> ImageSet:
    rng = np.random.default_rng(0)
    count = 103
    return ImageSet(
        images=rng.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8),
        labels=rng.integers(0, 3, count),
        class_names=("a", "b", "c"),
        paths=np.array([str(row) for row in range(count)]),
    )


def test_batches_are_the_rows_that_they_say(data: ImageSet):
    rows = np.arange(3, 103, 2)
    batches = list(make_loader(data, rows, 16, seed=1, shuffle=True))
    assert [len(batch.labels) for batch in batches] == [16, 16, 16, 2]
    seen = torch.cat([batch.rows for batch in batches]).numpy()
    np.testing.assert_array_equal(np.sort(seen), rows)
    for batch in batches:
        assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        expected = data.images[batch.rows.numpy()].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(batch.images.numpy(), expected)
        np.testing.assert_array_equal(batch.labels.numpy(), data.labels[batch.rows.numpy()])


def test_order_is_a_function_of_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochOrder(500, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(1)
    np.random.seed(1)
    first = order(3, 7)
    torch.manual_seed(2)
    np.random.seed(2)
    assert order(3, 7) == first
    assert sorted(first) == list(range(500))
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16
    assert list(EpochOrder(5, 0, shuffle=False)) == [0, 1, 2, 3, 4]


def test_order_is_the_recorded_one():
    """A run that is resumed under another version of NumPy must go on with the same batches."""
    sampler = EpochOrder(10, 0)
    sampler.set_epoch(1)
    assert list(sampler) == [9, 2, 5, 7, 8, 6, 1, 4, 3, 0]


def test_order_is_uniform():
    """Each index is first about equally often: a chi-square statistic of 19 degrees of freedom."""
    firsts = []
    for epoch in range(4000):
        sampler = EpochOrder(20, 0)
        sampler.set_epoch(epoch)
        firsts.append(sampler.order()[0])
    counts = np.bincount(firsts, minlength=20)
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # 99.9 %


@pytest.mark.parametrize("count", [12, 13, 15])
def test_ranks_share_an_epoch_in_equally_many_steps(count: int):
    shares = [list(EpochOrder(count, 0, rank=rank, world_size=4)) for rank in range(4)]
    assert {len(share) for share in shares} == {-(-count // 4)}
    together = [index for step in zip(*shares, strict=True) for index in step]
    assert together[:count] == list(EpochOrder(count, 0))


def test_flips_do_not_depend_on_the_batch(data: ImageSet):
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2)
    rows = torch.arange(len(data))
    whole = flip(images, rows, seed=5, epoch=2)
    order = torch.randperm(len(data))
    assert torch.equal(flip(images[order], rows[order], seed=5, epoch=2), whole[order])
    assert not torch.equal(flip(images, rows, seed=5, epoch=3), whole)
    assert not torch.equal(flip(images, rows, seed=6, epoch=2), whole)


def test_flips_yield_all_four_variants_and_nothing_else():
    image = torch.arange(6).reshape(1, 1, 2, 3)
    variants = [image[0], image[0].flip(2), image[0].flip(1), image[0].flip(1, 2)]
    flipped = flip(image.expand(2000, -1, -1, -1), torch.arange(2000), seed=0, epoch=0)
    seen = [sum(torch.equal(one, variant) for one in flipped) for variant in variants]
    assert sum(seen) == 2000
    assert all(abs(count - 500) < 80 for count in seen)  # four standard deviations of 19.4


def test_flips_are_the_same_in_any_memory_and_dtype(data: ImageSet):
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2)
    rows = torch.arange(len(data))
    expected = flip(images, rows, 0, 0)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(flip(images.contiguous(), rows, 0, 0), expected)
    assert torch.equal(flip(images.float(), rows, 0, 0), expected.float())
    before = images.clone()
    flip(images, rows, 0, 1)
    assert torch.equal(images, before)


def test_flips_are_independent_of_the_order():
    """Row order of an epoch must not tell which images are flipped."""
    rows = np.arange(4000)
    image = torch.arange(4).reshape(1, 1, 2, 2)
    flipped = flip(image.expand(4000, -1, -1, -1), torch.from_numpy(rows), seed=0, epoch=0)
    horizontal = (flipped[:, 0] % 2).select(1, 0).select(1, 0).numpy()
    place = np.argsort(EpochOrder(4000, 0).order())
    assert abs(np.corrcoef(horizontal, place)[0, 1]) < 0.065  # four times 1 / sqrt(4000)


def test_normalisation_centres_and_scales_the_training_rows(data: ImageSet):
    data.images[..., 1] //= 4
    rows = np.arange(10, 90)
    normalise = Normalise(Normalisation.of(data.images, rows))
    images = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2)
    result = normalise(images)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    spread = result.std((0, 2, 3), correction=0)
    torch.testing.assert_close(spread, torch.ones(3), atol=1e-5, rtol=0)


def test_statistics_are_exact_whatever_the_order(data: ImageSet):
    rows = np.random.default_rng(1).permutation(len(data))
    pixels = data.images.reshape(-1, 3).astype(np.float64)
    found = Normalisation.of(data.images, rows)
    np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.std, pixels.std(0), rtol=1e-13)
    assert found == Normalisation.of(data.images, np.arange(len(data)))


def test_constant_channel_is_centred_and_finite():
    images = np.full((4, 2, 2, 1), 7, np.uint8)
    normalise = Normalise(Normalisation.of(images, np.arange(4)))
    result = normalise(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert torch.equal(result, torch.zeros(4, 1, 2, 2))


def test_imagenet_constants_are_those_of_its_scaled_photographs():
    grey = torch.full((1, 3, 1, 1), 128, dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (128 / 255 - mean) / std
    torch.testing.assert_close(Normalise(IMAGENET)(grey).flatten(), expected)
