"""Checks the output paths of commands, and prints their tables."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ltfast.cli.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table


def check_writable(folder: Path, flag: str = "--out") -> None:
    """Check that the folder given by an option is writable.

    Raises:
        UsageError: the folder is missing, is not a folder, or is not writable.
    """
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UsageError(f"{flag}: expected a writable folder, got {folder}")


def folder_at(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    path.mkdir(parents=True, exist_ok=True)
    check_writable(path)
    return path


def picture_at(name: str, flag: str = "--out") -> Path:
    """The path of a picture given by an option.

    Raises:
        UsageError: the suffix is not supported, or the folder is not writable.
    """
    path = Path(name)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"{flag}: expected the name of a .png, .pdf or .svg file, got {name!r}")
    check_writable(path.parent, flag)
    return path


def print_table(table: "Table") -> None:
    from ltfast.engine.console import Console

    Console().print(table, markup=True)
