"""`csv:FILE`: a table with a header and one image per line."""

import csv
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ltfast.data.datasets import FileDataset
from ltfast.data.files import image_path, read_lines
from ltfast.data.labels import check_labels, named_labels, numbered_classes, present_classes
from ltfast.data.splits import Splits
from ltfast.errors import InputError, InputNotFoundError

COLUMNS = ("path", "label", "split", "group")
_NEEDED = ("path", "label")
_DELIMITERS = ",\t;"
_BLANKS = " \t"
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NUMBER = re.compile("0|[1-9][0-9]{0,17}")  # fits into 64 bits


class _Row(NamedTuple):
    line: int  # from 1
    values: dict[str, str]  # by the names in COLUMNS


def read_table(path: Path, root: Path, columns: Mapping[str, str] | None = None, *, test_needed: bool = True) -> Splits:
    """Read the images in a table: UTF-8 (or as a byte-order mark says), separated by commas, tabs or semicolons.

    The columns are `path`, `label`, and if there are such columns, `split` (train, val or test; also validation, valid)
    and `group` (the patient, camera or site of the image). Other columns and blank lines are ignored. Without a column
    `split`, all images are training images. If only one of val and test occurs in it, this is the test part.

    If all labels are numbers, the classes are the numbers from 0 to the largest training label. Otherwise, they are the
    labels of the training images in sorted order.

    Args:
        path: the table.
        root: the folder of the images.
        columns: the names of the columns in this table, for those that have another name.
        test_needed: whether there must be test images.

    Raises:
        InputNotFoundError: the table or its first image is missing, or there are no test images.
        InputError: the table cannot be read, a column is missing, or a line has an invalid value; the message names the
            line and the column.
    """
    table = _read(path, root, columns)
    if "train" not in table.parts:
        raise InputError(f"{path}: column {table.names['split']}: expected training images, got none")
    if test_needed and "test" not in table.parts:
        raise InputNotFoundError(
            f"{path}: expected test images, marked test in a column {table.names['split']}; without them, give the "
            "share of images to take with --test-fraction"
        )
    table.check_root(next(iter(table.parts)))
    classes = table.classes("train", numbered_classes)
    data = {part: table.dataset(part, classes, "the training images") for part in table.parts}
    return Splits(
        data["train"],
        data.get("test"),
        named=not table.numbered,
        validation=data.get("validation"),
        origins={
            part: f"{table.names['split']} {rows[0].values['split']}"
            for part, rows in table.parts.items()
            if part != "train"
        },
    )


def read_test_table(path: Path, root: Path, columns: Mapping[str, str] | None = None) -> tuple[FileDataset, bool]:
    """Read the test images of a table alone; see `read_table`. The files of the other images may be missing.

    Without a column `split`, all images are test images.

    Returns:
        The images, and whether their classes have names. The classes are those of the test images: their labels in
        sorted order, or the numbers from 0 to the largest one.

    Raises:
        InputNotFoundError: the table or its first test image is missing, or there are no test images.
        InputError: see `read_table`.
    """
    table = _read(path, root, columns)
    part = "test" if "split" in table.parts[next(iter(table.parts))][0].values else "train"
    if part not in table.parts:
        raise InputNotFoundError(f"{path}: column {table.names['split']}: expected test images, got none")
    table.check_root(part)
    return table.dataset(part, table.classes(part, present_classes), "the test images"), not table.numbered


@dataclass(frozen=True)
class _Table:
    """The lines of a table by part, at least one; the parts are in the order of their first lines."""

    path: Path
    root: Path
    names: Mapping[str, str]  # of the columns in this table
    parts: Mapping[str, Sequence[_Row]]

    @cached_property
    def numbered(self) -> bool:
        return all(_NUMBER.fullmatch(row.values["label"]) for rows in self.parts.values() for row in rows)

    def where(self, row: _Row, name: str) -> str:
        return f"{self.path}:{row.line}: column {self.names[name]}"

    def check_root(self, part: str) -> None:
        """Check that the first image of a part exists, which detects a wrong root early."""
        where = self.where(row := self.parts[part][0], "path")
        first = image_path(self.root, row.values["path"], where)
        if not os.path.isfile(first):
            raise InputNotFoundError(
                f"{where}: no image {first}; is {str(self.root)!r} the folder of the images (root)?"
            )

    def classes(self, part: str, numbered: Callable[[NDArray[np.int64], Callable[[int], str]], list[str]]) -> list[str]:
        """The classes of the labels of a part; `numbered` gives those of labels that are numbers."""
        rows = self.parts[part]
        if self.numbered:
            numbers = np.array([int(row.values["label"]) for row in rows])
            return numbered(numbers, lambda position: self.where(rows[position], "label"))
        return sorted({row.values["label"] for row in rows})

    def dataset(self, part: str, classes: Sequence[str], origin: str) -> FileDataset:
        """The images of a part; `origin` says where the classes come from, for messages."""
        rows = self.parts[part]

        def name(position: int) -> str:
            return self.where(rows[position], "label")

        values = [row.values["label"] for row in rows]
        if self.numbered:
            labels = np.array([int(value) for value in values])
            check_labels(labels, len(classes), f"as in {origin}", name)
        else:
            labels = named_labels(values, classes, f"a class of {origin}", name)
        groups = np.array([row.values["group"] for row in rows]) if "group" in rows[0].values else None
        paths = [image_path(self.root, row.values["path"], self.where(row, "path")) for row in rows]
        return FileDataset(paths, torch.from_numpy(labels), classes, groups)


def _read(path: Path, root: Path, columns: Mapping[str, str] | None) -> _Table:
    names = {**{name: name for name in COLUMNS}, **_checked(columns or {})}
    parts: dict[str, list[_Row]] = {}
    for row in _read_rows(path, names, set(columns or {})):
        word = row.values.get("split", "train")
        part = _SPLITS.get(word.lower())
        if part is None:
            raise InputError(f"{path}:{row.line}: column {names['split']}: expected train, val or test, got {word!r}")
        parts.setdefault(part, []).append(row)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return _Table(path, root, names, parts)


def _checked(columns: Mapping[str, str]) -> Mapping[str, str]:
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise InputError(f"expected names for some of {', '.join(COLUMNS)}, got one for {unknown[0]!r}", name="columns")
    return columns


def _read_rows(path: Path, names: Mapping[str, str], given: set[str]) -> list[_Row]:
    """The rows of the table, at least one, each with a value for every column that is used."""
    lines = read_lines("source", path)
    start = next((number for number, line in enumerate(lines) if line.strip(_BLANKS + _DELIMITERS)), None)
    if start is None:
        raise InputError(f"{path}: expected a header with the columns {', '.join(_NEEDED)}, got an empty file")
    delimiter = max(_DELIMITERS, key=lambda one: _matches(lines[start], one, names))
    reader = csv.reader(
        (f"{line}\n" for line in lines[start:]), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    rows: list[_Row] = []
    places: dict[str, int] | None = None
    while True:
        line = start + reader.line_num + 1
        try:
            fields = [field.strip(_BLANKS) for field in next(reader)]
        except StopIteration:
            break
        except csv.Error as error:
            raise InputError(f"{path}:{line}: expected values between {delimiter!r}, got {error}") from error
        if places is None:
            header, places = fields, _places(f"{path}:{line}", fields, names, given)
            continue
        if not any(fields):
            continue
        if len(fields) > len(header):
            raise InputError(
                f"{path}:{line}: expected {len(header)} values, one per column of the header, got {len(fields)}; put "
                f"a value that contains {delimiter!r} into quotes"
            )
        values = {name: fields[place] if place < len(fields) else "" for name, place in places.items()}
        if missing := [name for name, value in values.items() if not value]:
            raise InputError(f"{path}:{line}: column {names[missing[0]]}: expected a value, got none")
        rows.append(_Row(line, values))
    if not rows:
        raise InputError(f"{path}: expected one image per line, got a header alone")
    return rows


def _header(line: str, delimiter: str) -> list[str]:
    try:
        return [field.strip(_BLANKS) for field in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
    except csv.Error:
        return []


def _matches(line: str, delimiter: str, names: Mapping[str, str]) -> tuple[int, int]:
    """How well a delimiter fits the header: the number of known columns, and of all columns."""
    header = _header(line, delimiter)
    return len({*names.values()} & {*header}), len(header)


def _places(where: str, header: Sequence[str], names: Mapping[str, str], given: set[str]) -> dict[str, int]:
    """The position of each column that is used."""
    for name in COLUMNS:
        column = names[name]
        if column not in header and (name in _NEEDED or name in given):
            near = get_close_matches(column, header, n=1)
            raise InputError(
                f"{where}: expected a column {column}, got the columns {', '.join(map(repr, header))}"
                + (f"; did you mean --columns {name}={near[0]}?" if near else f"; --columns {name}=NAME names it")
            )
        if header.count(column) > 1:
            raise InputError(f"{where}: expected one column {column}, got {header.count(column)}")
    return {name: header.index(names[name]) for name in COLUMNS if names[name] in header}
