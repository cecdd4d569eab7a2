"""The supported image formats."""

from functools import cache

from PIL import Image

# Pillow's names. Formats whose decoder runs a program (EPS, WMF) and formats not used for photographs are excluded.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")


@cache
def extensions() -> frozenset[str]:
    """The file extensions of `FORMATS` that the installed Pillow can read, in lower case: `.png`, `.jpg`, ..."""
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in FORMATS)
