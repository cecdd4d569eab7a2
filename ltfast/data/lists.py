"""`list:FILE`: a file with one path and label per line."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ltfast.data.datasets import FileDataset
from ltfast.data.files import check_file, image_path, read_lines
from ltfast.data.labels import check_labels, numbered_classes, present_classes
from ltfast.data.splits import Splits
from ltfast.errors import InputError, InputNotFoundError

_HELD_OUT = ("test", "val")  # names of the test list, the first that exists
_BLANKS = " \t"  # other white space may be part of a file name
_DIGITS = 18  # labels with this many digits fit into 64 bits


class _List(NamedTuple):
    paths: list[str]
    labels: NDArray[np.int64]  # (N,)
    lines: list[int]  # line number of each image


def read_lists(path: Path, root: Path, test: Path | None = None, *, test_needed: bool = True) -> Splits:
    """Read the images in a training list, in a test list, and in a validation list if there is one.

    Args:
        path: the training list. If its name contains "train", lists in the same folder that have "test" or "val" in its
            place are the test list and the validation list; if only one of them exists, it is the test list.
        root: the folder of the images.
        test: the test list; None means the one in the same folder.
        test_needed: whether there must be a test list.

    Raises:
        InputNotFoundError: a list is missing, or the first image of a list.
        InputError: a list cannot be read, or a line has no path and label; the message names the line.
    """
    check_file("source", path)
    if test is None:
        test = _neighbour(path, _HELD_OUT)
    else:
        check_file("test", test)
    if test is None and test_needed:
        raise _no_test_list(path)
    validation = _neighbour(path, ("val",))
    files = {} if test is None else {"test": test}
    if validation is not None and validation != test:
        files["validation"] = validation
    own = _read(path, root)
    names = numbered_classes(own.labels, lambda position: f"{path}:{own.lines[position]}")

    def other(file: Path) -> FileDataset:
        read = _read(file, root)
        check_labels(read.labels, len(names), f"as in {path}", lambda position: f"{file}:{read.lines[position]}")
        return FileDataset(read.paths, torch.from_numpy(read.labels), names)

    parts = {what: other(file) for what, file in files.items()}
    return Splits(
        FileDataset(own.paths, torch.from_numpy(own.labels), names),
        parts.get("test"),
        named=False,
        validation=parts.get("validation"),
        origins={what: file.name for what, file in files.items()},
    )


def read_test_list(path: Path, root: Path, test: Path | None = None) -> FileDataset:
    """Read the images of the test list alone; see `read_lists`. The training list may be missing.

    Args:
        path: the training list; or without "train" in its name and without `test`, the test list itself.
        root, test: see `read_lists`.

    Returns:
        The images, with the classes 0 to the largest test label.

    Raises:
        InputNotFoundError: the test list is missing, or its first image.
        InputError: the list cannot be read, or a line has no path and label; the message names the line.
    """
    if test is None:
        test = _neighbour(path, _HELD_OUT) if "train" in path.name else path
    if test is None:
        raise _no_test_list(path)
    held_out = _read(test, root)
    names = present_classes(held_out.labels, lambda position: f"{test}:{held_out.lines[position]}")
    return FileDataset(held_out.paths, torch.from_numpy(held_out.labels), names)


def _neighbour(path: Path, parts: Sequence[str]) -> Path | None:
    """The first file that exists in the folder of a training list, with one of `parts` in the place of "train"."""
    return next((file for file in _neighbours(path, parts) if os.path.lexists(file)), None)


def _neighbours(path: Path, parts: Sequence[str]) -> list[Path]:
    before, train, after = path.name.rpartition("train")
    return [path.with_name(before + part + after) for part in parts] if train else []


def _no_test_list(path: Path) -> InputNotFoundError:
    names = " or ".join(file.name for file in _neighbours(path, _HELD_OUT))
    return InputNotFoundError(
        f"list: expected a test list {f'next to {path}: {names}' if names else f'for {path}'}; give a list with "
        "--test, or a share of the images with --test-fraction"
    )


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
        paths.append(image_path(root, file, f"{path}:{number}"))
        labels.append(int(label))
        numbers.append(number)
    if not paths:
        raise InputError(f"{path}: expected one path and label per line, got an empty file")
    # Checking one image detects a wrong root early. Opening an image reports if that image alone is missing.
    if not os.path.isfile(paths[0]):
        raise InputNotFoundError(f"{path}: no image {paths[0]}; is {str(root)!r} the folder of the images (root)?")
    return _List(paths, np.array(labels, dtype=np.int64), numbers)
