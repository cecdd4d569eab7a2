"""`npz:FILE`: a file with images and labels as arrays."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from ltfast.data.datasets import ArrayDataset
from ltfast.data.files import check_file, check_memory
from ltfast.data.labels import check_labels, numbered_classes, present_classes
from ltfast.data.splits import Splits
from ltfast.errors import InputError, InputTypeError

_NAMES = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> Splits:
    """Read the arrays `x_train`, `y_train`, `x_test` and `y_test` of a `.npz` file.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: the file is not a `.npz` file, lacks an array or does not fit into memory, or a shape or label is
            invalid.
        InputTypeError: an array has a wrong dtype.
    """
    arrays = _read_arrays(path, _NAMES)
    shape = arrays["x_train"].shape[1:]
    if arrays["x_test"].shape[1:] != shape:
        raise InputError(
            f"{path}: x_test: expected images of shape {shape} as in x_train, got {arrays['x_test'].shape[1:]}"
        )
    train_labels, test_labels = (_labels(path, name, arrays[name]) for name in ("y_train", "y_test"))
    names = numbered_classes(train_labels, lambda position: f"{path}: y_train[{position}]")
    check_labels(test_labels, len(names), "as in y_train", lambda position: f"{path}: y_test[{position}]")
    return Splits(
        _dataset(path, "train", arrays["x_train"], train_labels, names),
        _dataset(path, "test", arrays["x_test"], test_labels, names),
        named=False,
    )


def read_test_arrays(path: Path) -> ArrayDataset:
    """Read the arrays `x_test` and `y_test` of a `.npz` file alone; the others may be missing.

    Returns:
        The images, with the classes 0 to the largest test label.

    Raises:
        InputNotFoundError, InputError, InputTypeError: see `read_npz`.
    """
    arrays = _read_arrays(path, ("x_test", "y_test"))
    labels = _labels(path, "y_test", arrays["y_test"])
    names = present_classes(labels, lambda position: f"{path}: y_test[{position}]")
    return _dataset(path, "test", arrays["x_test"], labels, names)


def _dataset(
    path: Path, part: str, images: NDArray[Any], labels: NDArray[np.integer[Any]], names: Sequence[str]
) -> ArrayDataset:
    try:
        return ArrayDataset(images, torch.from_numpy(labels.astype(np.int64)), names)
    except TypeError as error:
        raise InputTypeError(f"{path}: {part}: {error}") from error
    except ValueError as error:
        raise InputError(f"{path}: {part}: {error}") from error


def _labels(path: Path, name: str, array: NDArray[Any]) -> NDArray[np.integer[Any]]:
    """The labels as an array of shape (N,), N at least 1."""
    if not np.issubdtype(array.dtype, np.integer):
        raise InputTypeError(f"{path}: {name}: expected integers, got {array.dtype}")
    labels = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if labels.ndim != 1 or len(labels) == 0:
        raise InputError(f"{path}: {name}: expected shape (N,) with N at least 1, got {array.shape}")
    return labels


def _read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    check_file("source", path)
    try:
        archive = ZipFile(path)
    except Exception as error:  # zipfile may raise any exception on a damaged or forged archive
        raise InputError(f"{path}: expected a .npz file, but it cannot be read as one ({error})") from error
    with archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if not members.keys() >= set(names):
            raise InputError(f"{path}: expected the arrays {', '.join(names)}, got {list(members)}")
        check_memory(f"{path}: its arrays", sum(members[name].file_size for name in names))
        return {name: _read_array(archive, members[name], f"{path}: {name}") for name in names}


def _read_array(archive: ZipFile, member: ZipInfo, name: str) -> NDArray[Any]:
    try:
        # numpy allocates the size in an array's header before it reads the data, so check that size first
        with archive.open(member) as file:
            major, _ = npy.read_magic(file)
            shape, _, dtype = (npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0)(file)
            claimed, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if claimed != held and not dtype.hasobject:
            raise ValueError(f"its header claims {claimed:,} bytes, shape {shape} of {dtype}, but it has {held:,}")
        with archive.open(member) as file:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    except Exception as error:  # as above; numpy too may raise any exception
        raise InputError(f"{name} cannot be read ({error})") from error
    return array
