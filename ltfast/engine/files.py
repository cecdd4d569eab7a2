"""Files that are whole or not there: written beside the old one, synced and renamed."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace the file at `path`: after a crash at any moment, the old one or the new one is there, whole.

    Args:
        path: the file.
        write: is given the open file to write to.

    Raises:
        OSError: it cannot be written (the disk is full, say); the old one is as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer turns some of the first into the second
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__ or error
        before = "the one before it is whole" if path.exists() else "there is no earlier one"
        raise OSError(f"cannot write {path}: {cause}; {before}") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Windows cannot open a folder, and does not need to."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
