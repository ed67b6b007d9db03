"""PathMNIST and its relatives: one .npz with the images and labels of every part.

The images are read as a stream from the compressed member, never as a whole: at 224 x 224 they are
16 GB. Pickled arrays are refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from cfal_experiments.data.collection import Collection
from cfal_experiments.errors import InputError

#: Parts in the order of the rows, by the prefix of their arrays.
PARTS = {"train": "train", "val": "validation", "test": "test"}

#: PathMNIST's classes in its order, under the names that the NCT-CRC folders have.
PATHMNIST_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")

STREAMED_ROWS = 256


def read(file: Path) -> Collection:
    """The parts of an .npz: `train_images` [n, h, w, 3] uint8 with `train_labels` [n, 1] and so on.

    Nine classes in a file named after PathMNIST get the tissue names; others are numbered.

    Raises:
        InputError: no .npz, without such arrays, or with arrays of another shape or dtype.
    """
    paths, labels, parts, content, sizes = [], [], [], [], set()
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            for prefix, part in PARTS.items():
                if f"{prefix}_images.npy" not in members:
                    continue
                shape = _image_shape(archive, file, prefix)
                part_labels = _labels(archive, file, prefix, shape[0])
                paths += [f"{part}/{number}" for number in range(shape[0])]
                labels.append(part_labels)
                parts += [part] * shape[0]
                sizes.add((shape[2], shape[1]))
                content.append((prefix, members[f"{prefix}_images.npy"].CRC))
    except zipfile.BadZipFile as error:
        raise InputError(f"{file}: no .npz file ({error}); download it again") from error
    if not paths:
        raise InputError(
            f"{file}: no array train_images, val_images or test_images; give an .npz laid out as "
            "MedMNIST's"
        )
    every = np.concatenate(labels)
    num_classes = int(every.max()) + 1
    named = "pathmnist" in file.name.lower() and num_classes <= len(PATHMNIST_CLASSES)
    return Collection(
        root=file,
        layout="npz",
        paths=np.array(paths),
        labels=every,
        class_names=PATHMNIST_CLASSES if named else tuple(map(str, range(num_classes))),
        split=np.array(parts),
        usual_size=sizes.pop() if len(sizes) == 1 else None,
        content=repr(content),
    )


def stream(file: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Yield `(first row, images [n, h, w, 3] uint8)` in the order of `read`'s rows.

    The archive's CRC is checked at the end of each member.

    Raises:
        InputError: a member is damaged.
    """
    first = 0
    try:
        with zipfile.ZipFile(file) as archive:
            for prefix in PARTS:
                if f"{prefix}_images.npy" not in archive.namelist():
                    continue
                with archive.open(f"{prefix}_images.npy") as member:
                    shape, _, _ = _header(member)
                    row_bytes = int(np.prod(shape[1:]))
                    for begin in range(0, shape[0], STREAMED_ROWS):
                        rows = min(STREAMED_ROWS, shape[0] - begin)
                        data = member.read(rows * row_bytes)
                        if len(data) < rows * row_bytes:
                            raise InputError(
                                f"{file}: {prefix}_images ends early; download it again"
                            )
                        yield first + begin, np.frombuffer(data, np.uint8).reshape(rows, *shape[1:])
                    member.read(1)  # reaching the end is what checks the CRC
                first += shape[0]
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{file}: damaged ({error}); download it again") from error


def _image_shape(archive: zipfile.ZipFile, file: Path, prefix: str) -> tuple[int, ...]:
    with archive.open(f"{prefix}_images.npy") as member:
        shape, fortran, dtype = _header(member)
    if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3:
        raise InputError(
            f"{file}: {prefix}_images has shape {shape} and dtype {dtype}; RGB images "
            "[n, height, width, 3] in uint8 are needed"
        )
    return shape


def _labels(archive: zipfile.ZipFile, file: Path, prefix: str, count: int) -> np.ndarray:
    if f"{prefix}_labels.npy" not in archive.namelist():
        raise InputError(f"{file}: {prefix}_images without {prefix}_labels; download it again")
    try:
        with archive.open(f"{prefix}_labels.npy") as member:
            labels = npy.read_array(member, allow_pickle=False)
    except ValueError as error:  # a pickled array among others
        raise InputError(f"{file}: {prefix}_labels cannot be read ({error})") from error
    if labels.size != count or labels.dtype.kind not in "iu" or (count and labels.min() < 0):
        raise InputError(
            f"{file}: {prefix}_labels has shape {labels.shape} and dtype {labels.dtype}; one class "
            f"number from 0 on for each of {count} images is needed"
        )
    return labels.reshape(-1).astype(np.int64)


def _header(member: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(member)
    if version == (1, 0):
        return npy.read_array_header_1_0(member)
    return npy.read_array_header_2_0(member)
