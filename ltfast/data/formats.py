"""The image formats that are read."""

from functools import cache

from PIL import Image

# Pillow's names. Those that run a program (EPS, WMF) or that hold no photographs are not among them.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")


@cache
def extensions() -> frozenset[str]:
    """The file extensions of `FORMATS` that this Pillow can read, in lower case: `.png`, `.jpg`, `.jfif`, ..."""
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in FORMATS)
