"""Class names for data sets whose classes are only numbered."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ltfast.data.datasets import ImageDataset
from ltfast.data.files import read_lines
from ltfast.errors import InputError

_Images = TypeVar("_Images", bound=ImageDataset)


def read_class_names(path: Path) -> list[str]:
    """Read a text file with one class name per line: line k + 1 is the name of label k.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: the file is not text, or a line is empty or repeats a name; the message names the line.
    """
    lines: dict[str, int] = {}
    for number, line in enumerate(read_lines("class_names", path), 1):
        name = line.strip(" \t")
        if not name:
            raise InputError(f"{path}:{number}: expected the name of class {number - 1}, got an empty line")
        if name in lines:
            raise InputError(f"{path}:{number}: expected each name once, got {name!r} as in line {lines[name]}")
        lines[name] = number
    if not lines:
        raise InputError(f"{path}: expected one class name per line, got an empty file")
    return list(lines)


def check_length(path: Path, names: Sequence[str], num_classes: int, where: str, *, more: bool = False) -> None:
    """Check that a file has one name for each class.

    Args:
        path: the file.
        names: its names.
        num_classes: the number of classes.
        where: the data to which the classes belong, for the message.
        more: whether to allow names of further classes.

    Raises:
        InputError: there are too few or too many names; the message names the line.
    """
    if len(names) < num_classes:
        raise InputError(
            f"{path}:{len(names) + 1}: expected the name of class {len(names)}, since {where} has {num_classes} "
            "classes, got the end of the file"
        )
    if len(names) > num_classes and not more:
        raise InputError(
            f"{path}:{num_classes + 1}: expected no more names, since {where} has {num_classes} classes, "
            f"got {names[num_classes]!r}"
        )


def with_classes(images: _Images, labels: Tensor, class_names: Sequence[str]) -> _Images:
    """A copy of the data set with other labels, (N,) int64 in [0, C), and other class names, length C."""
    other = copy(images)
    other.labels, other.class_names = labels, list(class_names)
    return other
