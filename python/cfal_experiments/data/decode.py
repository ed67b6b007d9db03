"""From an image file to an RGB square of bytes: one definition for training and prediction."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

#: Filters of a resize, all antialiased except "nearest".
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


class Unreadable(Exception):
    """A file that is no image, or a damaged one; the message is the reason in one line."""


def open_rgb(file: Path | BinaryIO) -> Image.Image:
    """Decode a whole image to 8-bit RGB.

    Grey images get three equal channels, an alpha channel is dropped. An image cut off in the
    middle counts as unreadable: half a patch with a grey rest would train as if it were tissue.

    Raises:
        Unreadable: the file is missing, no image, or damaged.

    Example:
        >>> open_rgb(Path("no-such-file.png"))
        Traceback (most recent call last):
        ...
        cfal_experiments.data.decode.Unreadable: No such file or directory
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return image.convert("RGB")
    except OSError as error:
        raise Unreadable(_reason(error.strerror or str(error), file)) from error
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unreadable(_reason(str(error) or repr(error), file)) from error


def square(image: Image.Image, size: int, resampling: str = "bilinear") -> np.ndarray:
    """Resize to `size` x `size` and return the bytes, `[size, size, 3]` uint8.

    An image that is not square, such as a patch cropped at the edge of a slide, is stretched. One
    that has the size already is returned as it is.
    """
    if image.size != (size, size):
        image = image.resize((size, size), RESAMPLING[resampling])
    return np.asarray(image)


def _reason(text: str, file: Path | BinaryIO) -> str:
    """The library's message on one line, without the path that the caller prints anyway."""
    return " ".join(
        text.replace(repr(str(file)), "the file").replace(str(file), "the file").split()
    )
