"""`list:FILE`: a file with one path and label per line."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ltfast.data.datasets import FileDataset
from ltfast.data.files import check_file, read_lines
from ltfast.data.labels import check_labels, numbered_classes, present_classes
from ltfast.data.splits import Splits
from ltfast.errors import InputError, InputNotFoundError

_BLANKS = " \t"  # other white space may be part of a file name
_DIGITS = 18  # labels with this many digits fit into 64 bits


class _List(NamedTuple):
    paths: list[str]
    labels: NDArray[np.int64]  # (N,)
    lines: list[int]  # line number of each image


def read_lists(path: Path, root: Path) -> Splits:
    """Read the images in a training list and in the test list in the same folder.

    Args:
        path: the training list. The test list has "test" or "val" in its name in place of "train".
        root: the folder of the images.

    Raises:
        InputNotFoundError: a list is missing, or the first image of a list.
        InputError: a list cannot be read, or a line has no path and label; the message names the line.
    """
    _check_name(path)
    check_file("source", path)
    held_out = _held_out(path)
    train, test = _read(path, root), _read(held_out, root)
    names = numbered_classes(train.labels, lambda position: f"{path}:{train.lines[position]}")
    check_labels(test.labels, len(names), f"as in {path}", lambda position: f"{held_out}:{test.lines[position]}")
    return Splits(
        FileDataset(train.paths, torch.from_numpy(train.labels), names),
        FileDataset(test.paths, torch.from_numpy(test.labels), names),
        named=False,
    )


def read_test_list(path: Path, root: Path) -> FileDataset:
    """Read the images of the test list alone; see `read_lists`. The training list may be missing.

    Returns:
        The images, with the classes 0 to the largest test label.

    Raises:
        InputNotFoundError: the test list is missing, or its first image.
        InputError: the list cannot be read, or a line has no path and label; the message names the line.
    """
    _check_name(path)
    held_out = _held_out(path)
    test = _read(held_out, root)
    names = present_classes(test.labels, lambda position: f"{held_out}:{test.lines[position]}")
    return FileDataset(test.paths, torch.from_numpy(test.labels), names)


def _check_name(path: Path) -> None:
    if "train" not in path.name:
        raise InputError(f"list: expected a file with 'train' in its name (ImageNet_LT_train.txt), got {path}")


def _held_out(path: Path) -> Path:
    """The test list in the folder of a training list."""
    before, _, after = path.name.rpartition("train")
    candidates = [path.with_name(before + part + after) for part in ("test", "val")]
    held_out = next((file for file in candidates if os.path.lexists(file)), None)
    if held_out is None:
        raise InputNotFoundError(
            f"list: expected a test list next to {path}: {candidates[0].name} or {candidates[1].name}"
        )
    return held_out


def _read(path: Path, root: Path) -> _List:
    paths, labels, numbers = [], [], []
    for number, line in enumerate(read_lines("source", path), 1):
        line = line.strip(_BLANKS)
        if not line:
            continue
        cut = max(line.rfind(blank) for blank in _BLANKS)
        file, label = line[: max(cut, 0)].rstrip(_BLANKS), line[cut + 1 :]
        if not file or not (label.isascii() and label.isdecimal()):
            raise InputError(f"{path}:{number}: expected a path and a label of at least 0, got {line[:200]!r}")
        if len(label) > _DIGITS:
            raise InputError(f"{path}:{number}: expected a label of at most {_DIGITS} digits, got {len(label)}")
        image = os.path.join(root, file)
        if "\\" in file and os.sep != "\\" and not os.path.isfile(image):
            raise InputError(f"{path}:{number}: expected / as separator, got {file!r}, which does not exist")
        paths.append(image)
        labels.append(int(label))
        numbers.append(number)
    if not paths:
        raise InputError(f"{path}: expected one path and label per line, got an empty file")
    # Checking one image detects a wrong root early. Opening an image reports if that image alone is missing.
    if not os.path.isfile(paths[0]):
        raise InputNotFoundError(f"{path}: no image {paths[0]}; is {str(root)!r} the folder of the images (root)?")
    return _List(paths, np.array(labels, dtype=np.int64), numbers)
