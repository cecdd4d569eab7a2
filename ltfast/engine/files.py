"""Files that are whole or not there: written under a new name beside the old one, synced and renamed.

Everything that ltfast writes, it writes here; TensorBoard's events, which grow, are the one exception.
"""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace the file at `path`: after a crash at any moment, the old one or the new one is there, whole.

    Nothing is written through a link: the new file has a random name of its own until it is whole, and a link at `path`
    is itself replaced, not the file that it leads to.

    Args:
        path: the file.
        write: is given the open file to write to.

    Raises:
        OSError: it cannot be written (the disk is full, say), or something else than a file is there; what was there
            is as it was.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"cannot write {path}: something else than a file is there")
    partial = path.with_name(f"{path.name[:50]}.{token_hex(8)}.partial")
    try:
        # "x": a new file, never one that is there or that a link leads to; its mode is what the umask leaves
        with open(partial, "xb") as file:
            try:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, path)
            except BaseException:
                with suppress(OSError):
                    partial.unlink()
                raise
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer turns some of the first into the second
        cause = error if isinstance(error, OSError) else error.__context__ or error
        if isinstance(cause, OSError) and cause.errno is not None:
            cause = OSError(cause.errno, cause.strerror)  # without the random name
        before = "the one before it is whole" if path.exists() else "there is no earlier one"
        raise OSError(f"cannot write {path}: {cause}; {before}") from error


def remove_partial_files(folder: Path, names: Iterable[str]) -> None:
    """Remove what killed runs have left of files of these names, half written.

    Raises:
        OSError: one cannot be removed.
    """
    pattern = re.compile(rf"({'|'.join(map(re.escape, names))})\.[0-9a-f]{{16}}\.partial")
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Windows cannot open a folder, and does not need to."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
