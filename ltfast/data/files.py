"""Checks the user's files, and reads text files line by line."""

import codecs
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import psutil

from ltfast.errors import InputError, InputNotFoundError

# longer marks first: the mark of UTF-32 begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_END = "\r\n|\r|\n"


def kind_of(mode: int) -> str:
    """Describe the file type in `st_mode`: "a regular file", "a folder", "a FIFO", ..."""
    kinds = {
        stat.S_IFREG: "a regular file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def check_file(name: str, path: Path) -> int:
    """Check that a path is a regular file: reading a FIFO or a device could block or never end.

    Args:
        name: the setting that gives the file; the messages begin with it.
        path: the file.

    Returns:
        The size in bytes.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: the path cannot be accessed or is not a regular file.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise InputNotFoundError(f"no file {path}", name=name) from error
    except (OSError, ValueError) as error:  # no permission, a link loop, a name that is too long, a null character
        raise InputError(f"cannot read {str(path)!r}: {error}", name=name) from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"expected a regular file, got {path}, which is {kind_of(found.st_mode)}", name=name)
    return found.st_size


def check_memory(what: str, size: int) -> None:
    """Check that data fit into the free memory.

    Args:
        what: a description of the data; the message begins with it.
        size: the size of the data in bytes.

    Raises:
        InputError: the data do not fit.
    """
    free = psutil.virtual_memory().available
    if size > free:
        raise InputError(f"{what}: {size:,} bytes do not fit into memory, of which {free:,} bytes are free")


@contextmanager
def open_text(name: str, path: Path, *, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file that is read line by line. Encodings are those of `read_lines`, except that bytes that are not
    UTF-8 become surrogates, as in file names.

    Args:
        name: see `read_lines`.
        path: the file.
        newline: as for `open`.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: the file is not a regular file, or it cannot be read.
    """
    check_file(name, path)
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        encoding = next((known for mark, known in _MARKS if start.startswith(mark)), "utf-8")
        # without "-le" and "-be", Python's codecs skip the mark
        encoding = "utf-8-sig" if encoding == "utf-8" else encoding[:6]
        errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
        with open(path, encoding=encoding, errors=errors, newline=newline) as text:
            yield text
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in {error.encoding.upper()}; convert the file to UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", name=name) from error


def read_lines(name: str, path: Path) -> list[str]:
    r"""Read the lines of a text file, without line endings.

    The encoding is UTF-8, unless a byte-order mark gives another. Only `\n`, `\r\n` and `\r` end a line, since
    characters such as U+2028 or a form feed may be part of a file name.

    Args:
        name: the setting that gives the file; messages about a missing file begin with it.
        path: the file.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: the file is not a regular file, cannot be read, or is not text in this encoding; for the latter, the
            message names the line.
    """
    check_memory(str(path), check_file(name, path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", name=name) from error
    mark, encoding = next((known for known in _MARKS if content.startswith(known[0])), (b"", "utf-8"))
    content = content[len(mark) :]
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(re.findall(_LINE_END, content[: error.start].decode(encoding))) + 1
        raise InputError(
            f"{path}:{line}: expected text in {encoding.upper()}, got the byte 0x{content[error.start]:02x} "
            f"({error.reason}); convert the file to UTF-8"
        ) from error
    lines = re.split(_LINE_END, text)
    if "\0" in text:
        line = next(number for number, line in enumerate(lines, 1) if "\0" in line)
        raise InputError(f"{path}:{line}: expected text in UTF-8, got a null character; convert the file to UTF-8")
    return lines[:-1] if lines[-1] == "" else lines


def image_path(root: Path, file: str, where: str) -> str:
    """The path of an image that a file names.

    Args:
        root: the folder of the images.
        file: the path of the image, relative to `root`.
        where: the place of the path in the file; a message begins with it.

    Raises:
        InputError: the path has backslashes instead of slashes.
    """
    image = os.path.join(root, file)
    if "\\" in file and os.sep != "\\" and not os.path.isfile(image):
        raise InputError(f"{where}: expected / as separator, got {file!r}, which does not exist")
    return image
