"""Decodes image files to upright RGB images; only regular files in one of `FORMATS` are accepted."""

import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from ltfast.data.formats import FORMATS
from ltfast.errors import InputError, InputNotFoundError

# Pillow warns above 89 million pixels and raises an error above twice that. Only the second limit is used here: each
# worker process would repeat the warning for each large photograph.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Image.init()
_READERS = tuple(name for name in FORMATS if name in Image.OPEN)  # JPEG's also reads MPO; some Pillows lack AVIF

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _ImageFileError(OSError):
    def __init__(self, message: str) -> None:
        # a DataLoader worker passes on its whole traceback as the message; the original message is at its end
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class ImageDecodeError(_ImageFileError, InputError):
    """An image cannot be read or decoded. The message names its file, also in a DataLoader worker."""


class ImageNotFoundError(_ImageFileError, InputNotFoundError):
    """The file of an image is missing. The message names it, also in a DataLoader worker."""


def open_regular(path: str) -> IO[bytes]:
    """Open a regular file. Opening other kinds could block, such as a pipe without a writer.

    Raises:
        OSError: the file is missing, is not a regular file, or cannot be opened.
    """
    return open(path, "rb", opener=_regular)


def decode(open_file: Callable[[], IO[bytes]], name: Callable[[], str]) -> Image.Image:
    """Decode the first image in a file, and rotate it according to its Exif orientation.

    Args:
        open_file: a function that opens the file.
        name: a function that returns the file's name. It is called only on an error, since some readers must look the
            name up.

    Returns:
        The image, in mode RGB.

    Raises:
        ImageNotFoundError: the file is missing.
        ImageDecodeError: the file cannot be read, or is not an image in `FORMATS` with 8 bits per channel.
    """
    with _named(name), open_file() as file:
        image = _open(file)
        image.load()
        return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """Rotate an image according to its Exif orientation, and convert it to RGB.

    Raises:
        ValueError: the image has more than 8 bits per channel.
    """
    _check_mode(image)
    turn = _turn(image)
    return (image if turn is None else image.transpose(turn)).convert("RGB")


class Header(NamedTuple):
    """The size in pixels, before any rotation, and Pillow's mode of an image: RGB, L, P, RGBA, CMYK, ..."""

    width: int
    height: int
    mode: str


def check_header(open_file: Callable[[], IO[bytes]], name: Callable[[], str]) -> Header:
    """Check an image's format, mode and size without decoding it. For arguments and errors see `decode`."""
    with _named(name), open_file() as file:
        image = _open(file)
        return Header(*image.size, image.mode)


def _regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such flag, nor FIFOs
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError("expected a regular file, got a directory, a pipe or a device")


def _open(file: IO[bytes]) -> Image.Image:
    try:
        image = Image.open(file, formats=_READERS)
    except UnidentifiedImageError:  # its own message would repeat the file name
        raise ValueError(f"expected an image in one of the formats {', '.join(_READERS)}") from None
    _check_mode(image)
    _check_tiles(image)
    return image


def _check_mode(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        # Pillow would silently clip these to 0..255
        raise ValueError(f"expected 8 bits per channel, got mode {image.mode}")


def _check_tiles(image: Image.Image) -> None:
    """Limit the tile size of TIFF files: Pillow accepts tiles of any size, even in a small image."""
    tags = getattr(image, "tag_v2", {})
    pixels = tags.get(TiffImagePlugin.TILEWIDTH, 0) * tags.get(TiffImagePlugin.TILELENGTH, 0)
    if Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"expected tiles of at most {2 * Image.MAX_IMAGE_PIXELS} pixels, got {pixels}")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes a decoded image upright; None if it already is, or if its Exif data are unreadable.

    ImageOps.exif_transpose is not used, since it also rewrites the Exif data, which fails on some readable images.
    """
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow may raise any exception on damaged Exif data
        return None


@contextmanager
def _named(name: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ImageNotFoundError(f"no image file {name()}") from error
    except Exception as error:  # Pillow's decoders may raise any exception on a broken file
        raise ImageDecodeError(f"cannot decode image {name()}: {str(error) or type(error).__name__}") from error
