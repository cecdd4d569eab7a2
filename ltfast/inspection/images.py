"""Decodes each image of a data set once, and keeps what the findings need."""

import os
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from ltfast.data import ArrayDataset, ImageDataset
from ltfast.data.decode import ImageDecodeError, ImageNotFoundError

_SIDE = 256  # an image is reduced to about this size before its perceptual hash


class Seen(NamedTuple):
    """What is kept of an image.

    Attributes:
        width, height: in pixels, upright.
        mode: Pillow's mode of the file: RGB, L, P, ...
        content: a hash of the size and the decoded pixels, in RGB.
        appearance: a perceptual hash (pHash) of 64 bits, which is similar for similar images.
        constant: whether all pixels are equal.
    """

    width: int
    height: int
    mode: str
    content: bytes
    appearance: int
    constant: bool


def see(images: ImageDataset, index: int) -> Seen:
    """Look at an image.

    Raises:
        ImageNotFoundError, ImageDecodeError: see `ImageDataset.image`.
    """
    mode = images.header(index).mode
    image = images.image(index).convert("RGB")
    content = blake2b(repr(image.size).encode(), digest_size=16)
    content.update(image.tobytes())
    constant = all(low == high for low, high in image.getextrema())  # type: ignore[misc]
    return Seen(*image.size, mode, content.digest(), _appearance(image), constant)


def see_all(images: ImageDataset, threads: int, step: Callable[[], None]) -> tuple[list[Seen | None], dict[int, str]]:
    """Look at all images, in threads: Pillow decodes outside of Python's lock.

    Args:
        images: the images.
        threads: the number of threads.
        step: called after each image.

    Returns:
        What was seen of each image, None if it cannot be decoded; and the reason for each of those, by index.
    """
    seen: list[Seen | None] = []
    broken = {}
    with ThreadPool(threads) as pool:
        for index, result in enumerate(pool.imap(partial(_try, images), range(len(images)), chunksize=16)):
            if isinstance(result, str):
                broken[index] = result
            seen.append(None if isinstance(result, str) else result)
            step()
    return seen, broken


def default_threads(images: ImageDataset) -> int:
    """A thread for each core; for files some more, which wait for the disk."""
    cores = os.cpu_count() or 1
    return cores if isinstance(images, ArrayDataset) else min(32, cores + 4)


def _try(images: ImageDataset, index: int) -> Seen | str:
    try:
        return see(images, index)
    except (ImageDecodeError, ImageNotFoundError) as error:
        return " ".join(str(error).split())


def _appearance(image: Image.Image) -> int:
    factor = min(image.size) // _SIDE
    small = image.reduce(factor) if factor > 1 else image
    return int.from_bytes(np.packbits(imagehash.phash(small).hash).tobytes(), "big")
