"""The paths of images in files, folders, lists and CSV files, read as they are needed."""

import csv
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from ltfast.data.files import open_text
from ltfast.data.formats import extensions
from ltfast.errors import InputError, InputNotFoundError

_BLANKS = " \t"


class ImagePaths:
    """Paths of images, in the order of `names`, which can be iterated several times and are not kept in memory.

    A name is that of

    - a folder: its images and those in its subfolders, sorted by name. Images are files whose extension is in
      `ltfast.data.formats`. Hidden files and folders are left out, and links to folders are not followed;
    - a `.txt` file: one path per line;
    - a `.csv` or `.tsv` file: a header with a column `path`, and commas, tabs or semicolons;
    - any other file: an image.

    Relative paths in a list or CSV file are relative to its folder.

    Raises:
        InputNotFoundError: a name does not exist, or there are no images.
        InputError: a folder, list or CSV file cannot be read. Iterating raises it too.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        missing = next((name for name in self.names if not os.path.lexists(name)), None)
        if missing is not None:
            raise InputNotFoundError(f"there is no {missing}; expected image files, folders, .txt lists or CSV files")
        if len(self) == 0:
            raise InputNotFoundError(f"expected images, got none in {', '.join(self.names)}")

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for name in self.names:
            kind = os.path.splitext(name)[1].lower()
            if os.path.isdir(name):
                yield from _in_folder(name)
            elif kind == ".txt":
                yield from _in_list(name)
            elif kind in (".csv", ".tsv"):
                yield from _in_csv(name)
            else:
                yield name


def delimiter_of(header: str) -> str:
    """The delimiter of a CSV file, which is the most frequent one of comma, tab and semicolon in its first line."""
    return max(",\t;", key=header.count)


def _in_folder(folder: str) -> Iterator[str]:
    known, pending = extensions(), [folder]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as found:
                entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
        except OSError as error:
            raise InputError(f"cannot read the folder {current}: {error.strerror}") from error
        shown = [(name, is_folder) for name, is_folder in entries if not name.startswith(".")]
        for name, is_folder in shown:
            if not is_folder and os.path.splitext(name)[1].lower() in known:
                yield os.path.join(current, name)
        pending += [os.path.join(current, name) for name, is_folder in reversed(shown) if is_folder]


def _in_list(name: str) -> Iterator[str]:
    with open_text("paths", Path(name)) as lines:
        for line in lines:
            if path := line.strip(f"{_BLANKS}\n"):
                yield os.path.join(os.path.dirname(name), path)


def _in_csv(name: str) -> Iterator[str]:
    with open_text("paths", Path(name), newline="") as file:
        header = file.readline()
        delimiter = delimiter_of(header)
        columns = next(csv.reader([header], delimiter=delimiter), [])
        if "path" not in columns:
            raise InputError(f"{name}:1: expected a column path, got {', '.join(columns) or 'an empty line'}")
        column = columns.index("path")
        rows = csv.reader(file, delimiter=delimiter)
        try:
            for row in rows:
                if not row:
                    continue
                if len(row) <= column or not row[column]:
                    raise InputError(f"{name}:{rows.line_num + 1}: expected a path in column {column + 1}, got none")
                yield os.path.join(os.path.dirname(name), row[column])
        except csv.Error as error:
            raise InputError(f"{name}:{rows.line_num + 1}: {error}") from error
