"""Batches for training: whole batches from the cache, in an order that a resumed run repeats.

Order and flips are pure functions of the seed, the epoch and the row. No generator has a state that
a checkpoint would have to carry, and the number of loader processes or ranks changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from cfal_experiments.data.images import ImageSet
from cfal_experiments.data.normalisation import Normalisation


class Batch(NamedTuple):
    """Images as bytes, their labels, and which rows of the data set they are.

    Attributes:
        images: `[B, channels, height, width]` uint8, in channels-last memory.
        labels: `[B]` int64.
        rows: `[B]` int64, row numbers of the `ImageSet`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor


class CachedImages(Dataset):
    """Rows of an `ImageSet`, read a batch at a time.

    Args:
        data: the images.
        rows: which of them; index `i` of this data set is `rows[i]` there.
    """

    def __init__(self, data: ImageSet, rows: np.ndarray) -> None:
        self.images = np.asarray(data.images)  # still mapped, without the subclass's own cost
        self.labels = data.labels
        self.rows = np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """One batch: a gather from the mapped file, without a copy per image."""
        rows = self.rows[np.asarray(indices)]
        images = torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2)
        return Batch(images, torch.from_numpy(self.labels[rows]), torch.from_numpy(rows))


class EpochOrder(Sampler[int]):
    """A random order of `count` indices that depends on the seed and the epoch alone.

    With several ranks each takes every `world_size`-th index. The order is then filled up from its
    own beginning, so that all ranks take equally many steps.

    Args:
        count: number of indices.
        seed: of all epochs.
        shuffle: without it the order is 0, 1, ...
        rank: which share to yield.
        world_size: number of shares.
    """

    def __init__(
        self, count: int, seed: int, *, shuffle: bool = True, rank: int = 0, world_size: int = 1
    ) -> None:
        self.count = count
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls this at the start of every epoch."""
        self.epoch = epoch

    def order(self) -> np.ndarray:
        """Indices of all ranks, `[count]` int64."""
        if not self.shuffle:
            return np.arange(self.count)
        # Sorting by a hash, and not a generator's permutation: NumPy may change the latter.
        return np.argsort(_hash(self.seed, self.epoch, np.arange(self.count)), kind="stable")

    def __len__(self) -> int:
        return -(-self.count // self.world_size)

    def __iter__(self) -> Iterator[int]:
        filled = np.resize(self.order(), len(self) * self.world_size)
        return iter(filled[self.rank :: self.world_size].tolist())


def make_loader(
    data: ImageSet,
    rows: np.ndarray,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = False,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> DataLoader:
    """A loader of `Batch`es; its sampler is an `EpochOrder`.

    Reading from a cache is fast enough that processes (`workers`) cost more than they bring.

    Example:
        >>> loader = make_loader(cache, split.train, 32, seed=0, shuffle=True)
        >>> loader.sampler.set_epoch(3)
        >>> next(iter(loader)).images.shape
        torch.Size([32, 3, 32, 32])
    """
    order = EpochOrder(len(rows), seed, shuffle=shuffle, rank=rank, world_size=world_size)
    return DataLoader(
        CachedImages(data, rows),
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
    )


def flip(images: torch.Tensor, rows: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """Flip each image horizontally, vertically, both or not, with equal chance.

    The choice is a function of the seed, the epoch and the image's row, so it is the same in any
    batch, on any rank and on any device.

    Args:
        images: `[B, channels, height, width]`, any dtype.
        rows: `[B]` int64.
        seed: of the augmentation.
        epoch: from 0.
    """
    kinds = _hash(seed, epoch, rows.cpu().numpy(), stream=1) & np.uint64(3)
    mirrored = images.flip(3)  # of bytes in channels-last memory: vector code of torch
    if images.device.type != "cpu":
        bits = torch.from_numpy(kinds.astype(np.uint8)).to(images.device).view(-1, 1, 1, 1)
        images = torch.where((bits & 1).bool(), mirrored, images)
        return torch.where((bits & 2).bool(), images.flip(2), images)
    # One copy an image, in rows: a fraction of what torch's operations on the batch cost to start.
    result = torch.empty_like(images)
    target, sources = result.numpy(), (images.numpy(), mirrored.numpy())
    for number, kind in enumerate(kinds.tolist()):
        image = sources[kind & 1][number]
        target[number] = image[:, ::-1] if kind & 2 else image
    return result


class Normalise(nn.Module):
    """Bytes to float32: (x - mean) / std per channel, with the constants as buffers.

    Args:
        normalisation: the constants, in units of a byte.

    Example:
        >>> Normalise(IMAGENET)(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)).dtype
        torch.float32
    """

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        mean = torch.tensor(normalisation.mean, dtype=torch.float64).view(1, -1, 1, 1)
        std = torch.tensor(normalisation.std, dtype=torch.float64).view(1, -1, 1, 1)
        # (x - mean) / std as shift + x scale: one pass over the float32 values instead of two.
        self.register_buffer("shift", (-mean / std).float())
        self.register_buffer("scale", (1 / std).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[B, channels, height, width]` uint8 to float32 of the same memory format."""
        # One constant per value of a row, not per channel: in channels-last memory the operation
        # then runs along whole rows instead of over three values at a time.
        row = (1, images.shape[1], 1, images.shape[3])
        shift, scale = (
            each.expand(row).contiguous(memory_format=torch.channels_last)
            for each in (self.shift, self.scale)
        )
        return torch.addcmul(shift, images.to(torch.float32), scale)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _hash(seed: int, epoch: int, rows: np.ndarray, stream: int = 0) -> np.ndarray:
    """64 well-mixed bits per row: the finaliser of SplitMix64 over a counter, modulo 2^64."""
    first, second = _key(seed, epoch, stream)
    x = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x ^= first
    x += second
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


@lru_cache(maxsize=8)
def _key(seed: int, epoch: int, stream: int) -> np.ndarray:
    """Two words from NumPy's SeedSequence, whose output is fixed."""
    return np.random.SeedSequence((seed, epoch, stream)).generate_state(2, np.uint64)
