"""Where a command writes, and its tables."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ltfast.cli.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table


def check_writable(folder: Path, flag: str = "--out") -> None:
    """Refuse a folder that an option names and that cannot be written to.

    Raises:
        UsageError: it is missing, not a folder, or not writable.
    """
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UsageError(f"{flag}: {folder} is not a folder that can be written to")


def folder_at(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    path.mkdir(parents=True, exist_ok=True)
    check_writable(path)
    return path


def picture_at(name: str, flag: str = "--out") -> Path:
    """The path of a picture that an option names.

    Raises:
        UsageError: pictures have other suffixes; the file cannot be written.
    """
    path = Path(name)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"{flag}: expected a .png, .pdf or .svg file's name, got {name!r}")
    check_writable(path.parent, flag)
    return path


def print_table(table: "Table") -> None:
    from ltfast.engine.console import Console

    Console().print(table, markup=True)
