"""`npz:FILE`: a file with images and labels as arrays."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from ltfast.data.datasets import ArrayDataset
from ltfast.data.files import check_file, check_memory
from ltfast.data.labels import check_labels, named_labels, numbered_classes, present_classes
from ltfast.data.splits import Splits
from ltfast.errors import InputError, InputTypeError


def read_npz(path: Path) -> Splits:
    """Read the arrays `x_train`, `y_train`, `x_test` and `y_test` of a `.npz` file, and where they are there, `x_val`,
    `y_val` and `class_names`.

    Labels are integers, or strings, which are class names. The classes are `class_names`, or else the strings of
    `y_train` in sorted order, or else the numbers from 0 to the largest label of `y_train`.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: the file is not a `.npz` file, lacks an array or does not fit into memory, or a shape or label is
            invalid.
        InputTypeError: an array has a wrong dtype.
    """
    arrays = _read_arrays(path, [name for part in ("train", "test") for name in _names(part)], _names("val"))
    for part in ("test", "val"):
        images, expected = arrays.get(f"x_{part}"), arrays["x_train"].shape[1:]
        if images is not None and images.shape[1:] != expected:
            raise InputError(
                f"{path}: x_{part}: expected images of shape {expected} as in x_train, got {images.shape[1:]}"
            )
    classes = _classes(path, arrays, "train", numbered_classes)
    kinds = ("U", "strings") if classes.words else ("iu", "integers")
    labels = {
        part: _labels(path, f"y_{part}", arrays[f"y_{part}"], *kinds)
        for part in ("train", "test", "val")
        if f"y_{part}" in arrays
    }
    data = {part: _dataset(path, part, arrays[f"x_{part}"], labels[part], classes) for part in labels}
    return Splits(data["train"], data["test"], named=classes.named, validation=data.get("val"))


def read_test_arrays(path: Path) -> tuple[ArrayDataset, bool]:
    """Read the arrays `x_test` and `y_test` of a `.npz` file alone, and `class_names` if it is there; the others may be
    missing.

    Returns:
        The images, and whether their classes have names. Without `class_names`, the classes are the strings of `y_test`
        in sorted order, or the numbers from 0 to its largest label.

    Raises:
        InputNotFoundError, InputError, InputTypeError: see `read_npz`.
    """
    arrays = _read_arrays(path, _names("test"), [])
    classes = _classes(path, arrays, "test", present_classes)
    labels = _labels(path, "y_test", arrays["y_test"], "iuU", "integers or strings")
    return _dataset(path, "test", arrays["x_test"], labels, classes), classes.named


class _Classes(NamedTuple):
    names: list[str]
    words: bool  # whether the labels are strings
    named: bool
    origin: str  # where the classes come from, for messages


def _names(part: str) -> tuple[str, str]:
    return f"x_{part}", f"y_{part}"


def _classes(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    part: str,
    numbered: Callable[[NDArray[Any], Callable[[int], str]], list[str]],
) -> _Classes:
    """The classes of a file, from `class_names` or from the labels of a part."""
    labels = _labels(path, f"y_{part}", arrays[f"y_{part}"], "iuU", "integers or strings")
    words = labels.dtype.kind == "U"
    if "class_names" in arrays:
        origin = "a name in class_names" if words else "the length of class_names"
        return _Classes(_class_names(path, arrays["class_names"]), words, True, origin)
    if words:
        return _Classes(sorted(set(labels.tolist())), words, True, f"a label of y_{part}")
    names = numbered(labels, lambda position: f"{path}: y_{part}[{position}]")
    return _Classes(names, words, False, f"as in y_{part}")


def _dataset(path: Path, part: str, images: NDArray[Any], labels: NDArray[Any], classes: _Classes) -> ArrayDataset:
    def name(position: int) -> str:
        return f"{path}: y_{part}[{position}]"

    if classes.words:
        labels = named_labels(labels.tolist(), classes.names, classes.origin, name)
    else:
        check_labels(labels, len(classes.names), classes.origin, name)
    try:
        return ArrayDataset(images, torch.from_numpy(labels.astype(np.int64)), classes.names)
    except TypeError as error:
        raise InputTypeError(f"{path}: {part}: {error}") from error
    except ValueError as error:
        raise InputError(f"{path}: {part}: {error}") from error


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


def _read_arrays(path: Path, needed: Sequence[str], optional: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays with these names; `optional` ones all or none; and `class_names` if it is there."""
    check_file("source", path)
    try:
        archive = ZipFile(path)
    except Exception as error:  # zipfile may raise any exception on a damaged or forged archive
        raise InputError(f"{path}: expected a .npz file, but it cannot be read as one ({error})") from error
    with archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        wanted = [*needed, *(optional if any(name in members for name in optional) else ())]
        if not members.keys() >= set(wanted):
            raise InputError(f"{path}: expected the arrays {', '.join(wanted)}, got {list(members)}")
        names = [*wanted, *(["class_names"] if "class_names" in members else [])]
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
