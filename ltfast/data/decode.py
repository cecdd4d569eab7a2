"""From an image file to its pixels: only regular files and the formats of `FORMATS`, upright, in RGB."""

import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from ltfast.data.formats import FORMATS
from ltfast.errors import InputError, InputNotFoundError

# Pillow warns above 89 million pixels and refuses twice as many. The second limit alone holds here: a warning for each
# large photograph, in each process that loads images, would say nothing new.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Image.init()
_READERS = tuple(name for name in FORMATS if name in Image.OPEN)  # JPEG's reads MPO too; AVIF's is not in every Pillow

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
        # a DataLoader's worker hands over its whole traceback as the message: what was said is at its end
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class ImageDecodeError(_ImageFileError, InputError):
    """An image that cannot be read or decoded; the message names its file, in a DataLoader's worker too."""


class ImageNotFoundError(_ImageFileError, InputNotFoundError):
    """An image whose file is missing; the message names it, in a DataLoader's worker too."""


def open_regular(path: str) -> IO[bytes]:
    """Open a regular file. Others are refused: opening a pipe waits until something writes to it.

    Raises:
        OSError: it is missing, no regular file, or cannot be opened.
    """
    return open(path, "rb", opener=_regular)


def decode(open_file: Callable[[], IO[bytes]], name: Callable[[], str]) -> Image.Image:
    """The first picture in a file, turned as its Exif orientation says.

    Args:
        open_file: opens the file.
        name: names it. It is called only if there is something wrong, as some readers have to look it up.

    Returns:
        Mode RGB.

    Raises:
        ImageNotFoundError: the file is missing.
        ImageDecodeError: the file cannot be read, or is no image of `FORMATS` with 8 bits a channel.
    """
    with _named(name), open_file() as file:
        image = _open(file)
        image.load()
        turn = _turn(image)
        return (image if turn is None else image.transpose(turn)).convert("RGB")


def check_header(open_file: Callable[[], IO[bytes]], name: Callable[[], str]) -> None:
    """Look at an image's format, mode and size without decoding it. Arguments and errors are those of `decode`."""
    with _named(name), open_file() as file:
        _open(file)


def _regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has neither the flag nor such pipes
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError("expected a regular file, got a directory, a pipe or a device")


def _open(file: IO[bytes]) -> Image.Image:
    try:
        image = Image.open(file, formats=_READERS)
    except UnidentifiedImageError:  # its message would have the name once more
        raise ValueError(f"expected an image in one of the formats {', '.join(_READERS)}") from None
    if image.mode.startswith(("I", "F")):
        # Pillow would clip these to 0..255 without a word
        raise ValueError(f"expected 8 bits a channel, got mode {image.mode}")
    _check_tiles(image)
    return image


def _check_tiles(image: Image.Image) -> None:
    """A TIFF is decoded in tiles, which Pillow allows to be of any size, however small the image is."""
    tags = getattr(image, "tag_v2", {})
    pixels = tags.get(TiffImagePlugin.TILEWIDTH, 0) * tags.get(TiffImagePlugin.TILELENGTH, 0)
    if Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"expected tiles of at most {2 * Image.MAX_IMAGE_PIXELS} pixels, got {pixels}")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings a decoded image upright; None if it is, or if what it says of that cannot be read.

    Not ImageOps.exif_transpose: that also writes the Exif block anew, which fails on some that can be read.
    """
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged block makes Pillow raise nearly anything
        return None


@contextmanager
def _named(name: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ImageNotFoundError(f"no image file {name()}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise ImageDecodeError(f"cannot decode image {name()}: {str(error) or type(error).__name__}") from error
