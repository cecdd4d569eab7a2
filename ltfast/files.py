"""Atomic writing of files: a file is written under a new name beside the old one, synced and renamed.

ltfast writes all files in this way except TensorBoard's event files, which grow.
"""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace the file at `path`. After a crash at any moment, the old or the new file is there, complete.

    Nothing is written through a link: the new file has a random name until it is complete, and a link at `path` is
    replaced, not the file that it points to.

    Args:
        path: the file.
        write: called with the open file.

    Raises:
        OSError: the file cannot be written, for example because the disk is full, or `path` is not a regular file. The
            existing file is unchanged.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"cannot write {path}: it is not a regular file")
    partial = path.with_name(f"{path.name[:50]}.{token_hex(8)}.partial")
    try:
        # mode "x" creates a new file and never opens an existing one or a link's target; the umask sets permissions
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
    except (OSError, RuntimeError) as error:  # torch's writer turns some OSErrors into RuntimeErrors
        cause = error if isinstance(error, OSError) else error.__context__ or error
        if isinstance(cause, OSError) and cause.errno is not None:
            cause = OSError(cause.errno, cause.strerror)  # without the random name
        before = "the one before it is whole" if path.exists() else "there is no earlier one"
        raise OSError(f"cannot write {path}: {cause}; {before}") from error


def user_cache() -> Path | None:
    """The folder of this user's files that can be made again: $LTFAST_CACHE, or `ltfast` in $XDG_CACHE_HOME or
    ~/.cache. It need not exist. None for a user without a home."""
    if own := os.environ.get("LTFAST_CACHE"):
        return Path(own).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return cache / "ltfast" if cache.is_absolute() else None


def remove_partial_files(folder: Path, names: Iterable[str]) -> None:
    """Remove incomplete files of these names, which killed runs have left.

    Raises:
        OSError: a file cannot be removed.
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
