"""Files of the user's: whether they can be read, and text files line by line."""

import codecs
import re
import stat
from pathlib import Path

import psutil

from ltfast.errors import InputError, InputNotFoundError

# the longer marks first: UTF-32's begins as UTF-16's
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_END = "\r\n|\r|\n"


def kind_of(mode: int) -> str:
    """What `st_mode` says that something is: "a regular file", "a folder", "a FIFO", ..."""
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
    """The size in bytes of a regular file.

    Args:
        name: what the file is given as; the messages begin with it.
        path: the file. A FIFO or a device would block, or never end.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: it is no regular file.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise InputNotFoundError(f"no file {path}", name=name) from error
    except (OSError, ValueError) as error:  # no permission, a link to itself, a name too long, a null character
        raise InputError(f"cannot read {str(path)!r}: {error}", name=name) from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"expected a regular file, got {path}, which is {kind_of(found.st_mode)}", name=name)
    return found.st_size


def check_memory(what: str, size: int) -> None:
    """Refuse what does not fit into the memory that is free.

    Args:
        what: what would be read; the message begins with it.
        size: in bytes.

    Raises:
        InputError: it does not fit.
    """
    free = psutil.virtual_memory().available
    if size > free:
        raise InputError(f"{what}: {size:,} bytes do not fit into memory, of which {free:,} bytes are free")


def read_lines(name: str, path: Path) -> list[str]:
    r"""The lines of a text file, without their ends.

    The text is UTF-8, or what its byte-order mark says. A line ends with `\n`, `\r\n` or `\r`, and with no other
    character: U+2028 or a form feed may be part of a file's name.

    Args:
        name: what the file is given as; messages about a missing file begin with it.
        path: the file.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: it is no regular file, cannot be read, or is not such text; the message names the line.
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
