"""`npz:FILE`: a file with images and labels as arrays."""

import math
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from ltfast.data.datasets import ArrayDataset
from ltfast.data.files import check_file, check_memory
from ltfast.data.labels import check_labels, named_labels, numbered_classes
from ltfast.data.splits import Splits
from ltfast.errors import InputError, InputTypeError

_NAMES = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> Splits:
    """Read the arrays `x_train`, `y_train`, `x_test` and `y_test` of a `.npz` file, and `class_names` if there is one.

    Labels are integers, or strings, which are class names. The classes are `class_names`, or else the strings of
    `y_train` in sorted order, or else the numbers from 0 to the largest label of `y_train`.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: the file is not a `.npz` file, lacks an array or does not fit into memory, or a shape or label is
            invalid.
        InputTypeError: an array has a wrong dtype.
    """
    arrays = _read_arrays(path)
    shape = arrays["x_train"].shape[1:]
    if arrays["x_test"].shape[1:] != shape:
        raise InputError(
            f"{path}: x_test: expected images of shape {shape} as in x_train, got {arrays['x_test'].shape[1:]}"
        )
    given = _class_names(path, arrays["class_names"]) if "class_names" in arrays else None
    train_labels = _labels(path, "y_train", arrays["y_train"], "iuU", "integers or strings")
    words = train_labels.dtype.kind == "U"
    test_labels = _labels(path, "y_test", arrays["y_test"], *(("U", "strings") if words else ("iu", "integers")))
    if given is not None:
        names, why = given, "a name in class_names" if words else "the length of class_names"
    elif words:
        names, why = sorted(set(train_labels.tolist())), "a label of y_train"
    else:
        names, why = numbered_classes(train_labels, lambda position: f"{path}: y_train[{position}]"), "as in y_train"

    def split(part: str, labels: NDArray[Any]) -> ArrayDataset:
        def name(position: int) -> str:
            return f"{path}: y_{part}[{position}]"

        if words:
            labels = named_labels(labels.tolist(), names, why, name)
        else:
            check_labels(labels, len(names), why, name)
        try:
            return ArrayDataset(arrays[f"x_{part}"], torch.from_numpy(labels.astype(np.int64)), names)
        except TypeError as error:
            raise InputTypeError(f"{path}: {part}: {error}") from error
        except ValueError as error:
            raise InputError(f"{path}: {part}: {error}") from error

    return Splits(split("train", train_labels), split("test", test_labels), named=words or given is not None)


def _labels(path: Path, name: str, array: NDArray[Any], kinds: str, expected: str) -> NDArray[Any]:
    """The labels as an array of shape (N,), N at least 1, of a dtype whose kind is one of these."""
    if array.dtype.kind not in kinds:
        raise InputTypeError(f"{path}: {name}: expected {expected}, got {array.dtype}")
    labels = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if labels.ndim != 1 or len(labels) == 0:
        raise InputError(f"{path}: {name}: expected shape (N,) with N at least 1, got {array.shape}")
    return labels


def _class_names(path: Path, array: NDArray[Any]) -> list[str]:
    if array.dtype.kind != "U":
        raise InputTypeError(f"{path}: class_names: expected strings, got {array.dtype}")
    names: list[str] = array.tolist()
    if array.ndim != 1 or len(set(names)) < len(names) or len(names) == 0:
        raise InputError(f"{path}: class_names: expected shape (C,) with C at least 1 and each name once, got {names}")
    return names


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    check_file("source", path)
    try:
        archive = ZipFile(path)
    except Exception as error:  # zipfile may raise any exception on a damaged or forged archive
        raise InputError(f"{path}: expected a .npz file, but it cannot be read as one ({error})") from error
    with archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if not members.keys() >= set(_NAMES):
            raise InputError(f"{path}: expected the arrays {', '.join(_NAMES)}, got {list(members)}")
        names = [name for name in (*_NAMES, "class_names") if name in members]
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
