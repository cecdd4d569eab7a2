"""The image size that fits the sizes of image files."""

from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import numpy as np

from ltfast.data.datasets import ImageDataset
from ltfast.data.decode import Header, ImageDecodeError, ImageNotFoundError

LARGEST = 224
# the largest median of the short sides in pixels -> the size
_STEPS = {10: 8, 20: 16, 40: 32, 100: 64, 180: 128}
_SAMPLED = 500  # headers
_THREADS = 16  # hide the latency of a file server


class FittingSize(NamedTuple):
    """An image size, and what it follows from.

    Attributes:
        size: height and width in pixels.
        median: the median of the images' short sides in pixels.
    """

    size: int
    median: int


def fitting_size(images: ImageDataset) -> FittingSize | None:
    """The height and width in pixels that fit the images: 8, 16, 32, 64, 128 or 224, by the median of the short sides
    of at most 500 images, evenly spaced in the data set. Only their headers are read.

    Returns:
        None if no header can be read.
    """
    places = np.unique(np.linspace(0, len(images) - 1, _SAMPLED).round().astype(int))
    with ThreadPool(_THREADS) as pool:
        headers = pool.map(lambda place: _header(images, int(place)), places)
    sides = [min(header.width, header.height) for header in headers if header is not None]
    return size_for_sides(sides) if sides else None


def size_for_sides(sides: Sequence[int]) -> FittingSize:
    """The size that fits images with these short sides, at least one, in pixels; see `fitting_size`."""
    median = int(np.median(sides))
    return FittingSize(next((size for most, size in _STEPS.items() if median <= most), LARGEST), median)


def _header(images: ImageDataset, index: int) -> Header | None:
    try:
        return images.header(index)
    except (ImageDecodeError, ImageNotFoundError):
        return None
