"""Data sets of image patches: found, checked, fetched, prepared, split and loaded.

    layouts, collection    what lies on disk: paths, labels, patients; nothing decoded
    decode, prepare, cache from files to one mapped file of bytes, once
    images                 decoded images with labels, in memory or mapped
    splits, partition      train, validation, test; longtail thins the training part
    check                  damage, leaks, duplicates, odd sizes
    fetch                  public archives, resumed and verified
    normalisation          mean and standard deviation of the training part
    parallel, commands     all cores; what `cfal data` does
    loading                batches as tensors: the only module here that imports torch

Importing this package imports neither torch nor scikit-learn.
"""

from cfal_experiments.data.cache import Cache
from cfal_experiments.data.collection import Collection
from cfal_experiments.data.images import ImageSet
from cfal_experiments.data.layouts import open_collection
from cfal_experiments.data.normalisation import IMAGENET, Normalisation
from cfal_experiments.data.partition import Split
from cfal_experiments.data.prepare import prepare

__all__ = [
    "IMAGENET",
    "Cache",
    "Collection",
    "ImageSet",
    "Normalisation",
    "Split",
    "open_collection",
    "prepare",
]
