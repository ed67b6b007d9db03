"""From the configuration to images and their parts: what a run learns from and is measured on."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfal_experiments.data import splits
from cfal_experiments.data.cache import Cache, is_cache
from cfal_experiments.data.images import ImageSet
from cfal_experiments.data.layouts import open_collection
from cfal_experiments.data.longtail import geometric_profile, thin
from cfal_experiments.data.normalisation import IMAGENET, Normalisation
from cfal_experiments.data.partition import Split
from cfal_experiments.data.prepare import prepare
from cfal_experiments.errors import InputError
from cfal_experiments.progress import bar
from cfal_experiments.training.config import Config, DataConfig


@dataclass(frozen=True)
class Part:
    """Rows of a set of images."""

    images: ImageSet
    rows: np.ndarray

    @property
    def paths(self) -> np.ndarray:
        """`[n]` what the images are called."""
        return self.images.paths[self.rows]

    @property
    def labels(self) -> np.ndarray:
        """`[n]` int64."""
        return self.images.labels[self.rows]


@dataclass(frozen=True)
class Source:
    """The images of a run.

    Attributes:
        images: what `data.path` holds.
        split: its parts; `split.test` is empty where the test set lies elsewhere.
        test_images: what `data.test_path` holds, with the labels of `images`; or None.
    """

    images: ImageSet
    split: Split
    test_images: ImageSet | None = None

    @property
    def train(self) -> Part:
        """What is learned from."""
        return Part(self.images, self.split.train)

    @property
    def validation(self) -> Part:
        """What decides when to stop."""
        return Part(self.images, self.split.validation)

    @property
    def test(self) -> Part:
        """What nothing is decided on."""
        if self.test_images is not None:
            return Part(self.test_images, np.arange(len(self.test_images)))
        return Part(self.images, self.split.test)

    def normalisation(self, kind: str) -> Normalisation:
        """Per-channel constants, of the training part or ImageNet's."""
        return (
            IMAGENET
            if kind == "imagenet"
            else Normalisation.of(self.images.images, self.split.train)
        )


def make_split(config: Config, images: ImageSet) -> Split:
    """The parts of `images`, thinned to a long tail where one is asked for.

    Raises:
        InputError: the split cannot be made.
    """
    data = config.data
    shares = {} if data.test_path is None else {"test": 0.0}
    split = splits.make(
        data.split,
        images.labels,
        images.groups,
        images.paths,
        config.seeds.split,
        column=images.split,
        test_names=data.test_names,
        class_names=images.class_names,
        **shares,
    )
    if data.long_tail is None:
        return split
    first, last = data.long_tail_ends
    sizes = geometric_profile(images.num_classes, first, last, data.long_tail)
    train = thin(split.train, images.labels, sizes, config.seeds.split, images.class_names)
    return Split(train, split.validation, split.test)


def open_images(data: DataConfig, path: str | os.PathLike[str] | None, size: int) -> ImageSet:
    """Images at one size: a cache as it is, anything else decoded into one first.

    Args:
        data: says how the images are laid out and where caches go.
        path: a cache, or images that `cfal data prepare` takes.
        size: side in pixels.

    Raises:
        InputError: no path, nothing usable there, or a cache of another size.
    """
    if path is None:
        raise InputError(
            "no images: give a folder, an .npz, a manifest or a cache with --data PATH"
        )
    if is_cache(Path(path)):
        images = Cache.open(path)
        if images.settings.size != size:
            raise InputError(
                f"{path}: a cache of {images.settings.size} x {images.settings.size} pixels, "
                f"{size} are wanted; prepare another with 'cfal data prepare --size {size}'"
            )
        return images
    collection = open_collection(path, data.layout)
    to = _cache_folder(data) / _cache_name(Path(path), size)
    with bar(len(collection), "reading images", "image") as progress:
        # A changed collection replaces its cache: the folder's name is this collection's own.
        return prepare(collection, to, size, overwrite=True, on_images=progress.update)


def open_test(data: DataConfig, images: ImageSet, size: int) -> ImageSet | None:
    """The images of a separate test set with the classes of `images`, or None.

    Raises:
        InputError: nothing usable there, or a class that `images` lacks.
    """
    if data.test_path is None:
        return None
    return open_images(data, data.test_path, size).with_classes(images.class_names)


def _cache_folder(data: DataConfig) -> Path:
    if data.cache_folder is not None:
        return Path(data.cache_folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cfal"


def _cache_name(path: Path, size: int) -> str:
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]
    return f"{path.stem}-{size}-{place}"
