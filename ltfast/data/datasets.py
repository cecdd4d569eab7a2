"""Data sets of labelled images: from an array, from files, or from one of timm's readers."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ltfast.data.decode import Header, check_header, decode, open_regular


class ImageDataset(Dataset[tuple[Image.Image, int]], ABC):
    """A map-style data set of images and class labels.

    Attributes:
        labels: the labels, (N,) int64, in [0, C).
        class_names: the class names, length C.
        groups: the group of each image (patient, camera, site), (N,) strings or integers; None without groups. The
            images of a group are never split.
    """

    labels: Tensor
    class_names: list[str]
    groups: NDArray[Any] | None

    def __init__(self, labels: Tensor, class_names: Sequence[str], groups: NDArray[Any] | None = None) -> None:
        """Create a data set.

        Args:
            labels: the labels, (N,), any integer dtype, in [0, C), N at least 1.
            class_names: the class names, length C.
            groups: the group of each image, (N,) strings or integers.

        Raises:
            TypeError: the labels are not integers, or the groups neither strings nor integers.
            ValueError: the labels are not one-dimensional, empty, or not in [0, C), or the groups have another shape.
        """
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"labels: expected an integer dtype, got {labels.dtype}")
        if labels.ndim != 1 or len(labels) == 0:
            raise ValueError(f"labels: expected shape (N,) with N at least 1, got {tuple(labels.shape)}")
        values = labels.numpy()  # torch has no min for unsigned integers
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= len(class_names):
            raise ValueError(f"labels: expected values in [0, {len(class_names)}), got {low} to {high}")
        if groups is not None and groups.dtype.kind not in "iuU":
            raise TypeError(f"groups: expected strings or integers, got {groups.dtype}")
        if groups is not None and groups.shape != labels.shape:
            raise ValueError(f"groups: expected shape {tuple(labels.shape)} as the labels, got {groups.shape}")
        self.labels = labels.to(torch.int64)
        self.class_names = list(class_names)
        self.groups = groups

    @property
    def class_counts(self) -> list[int]:
        """The number of images of each class, length C; 0 for a class without images."""
        counts: list[int] = torch.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return counts

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), int(self.labels[index])

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The decoded image, mode RGB or L.

        Raises:
            IndexError: there is no such image.
            ImageNotFoundError: the file is missing; the message names it.
            ImageDecodeError: the file cannot be read or decoded; the message names it.
        """

    def header(self, index: int) -> Header:
        """The size and mode of an image, read without decoding it where possible. For errors see `image`."""
        image = self.image(index)
        return Header(*image.size, image.mode)

    def image_name(self, index: int) -> str:
        """What identifies an image for the user: its file, or its place in the data set, from 0."""
        return str(index)

    @abstractmethod
    def subset(self, indices: Tensor) -> "ImageDataset":
        """A data set of the images at `indices`, (M,) int64, in that order, with the same classes and their groups."""

    def _groups_at(self, indices: Tensor) -> NDArray[Any] | None:
        return None if self.groups is None else self.groups[indices.numpy()]

    def digests(self, *, sizes: bool = True) -> dict[str, str]:
        """Short hashes of the parts of the data: `labels`, and parts that identify the images, depending on the class.

        Args:
            sizes: whether to include the file sizes, which takes microseconds per file, or longer on a file server.
        """
        return {"labels": _digest(self.labels.numpy())}


class ArrayDataset(ImageDataset):
    """Images of the same size in memory.

    Attributes:
        images: the pixels, (N, H, W) or (N, H, W, 3) uint8.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: Tensor,
        class_names: Sequence[str],
        groups: NDArray[Any] | None = None,
    ) -> None:
        """Create a data set from an array.

        Args:
            images: the pixels, (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8.
            labels: the labels, (N,), any integer dtype, in [0, C).
            class_names: the class names, length C.
            groups: the group of each image, (N,) strings or integers.

        Raises:
            TypeError: the images are not uint8, the labels not integers, or the groups neither strings nor integers.
            ValueError: a shape or a label is invalid.
        """
        super().__init__(labels, class_names, groups)
        if images.dtype != np.uint8:
            raise TypeError(f"images: expected uint8 in 0..255, got {images.dtype}")
        if images.ndim == 4 and images.shape[3] == 1:
            images = images[..., 0]
        if (images.ndim != 3 and (images.ndim != 4 or images.shape[3] != 3)) or 0 in images.shape:
            raise ValueError(f"images: expected shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), got {images.shape}")
        if len(images) != len(labels):
            raise ValueError(f"images: expected as many as labels, got {len(images)} images and {len(labels)} labels")
        self.images = images

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def header(self, index: int) -> Header:
        height, width = self.images[index].shape[:2]
        return Header(width, height, "L" if self.images.ndim == 3 else "RGB")

    def subset(self, indices: Tensor) -> "ArrayDataset":
        pixels = self.images[indices.numpy()]
        return ArrayDataset(pixels, self.labels[indices], self.class_names, self._groups_at(indices))

    def digests(self, *, sizes: bool = True) -> dict[str, str]:
        """Hashes of `labels` and `images`. Hashing the pixels takes one to three seconds per gigabyte."""
        return {**super().digests(), "images": _digest(self.images)}


class FileDataset(ImageDataset):
    """Images in regular files, decoded to RGB on access and rotated according to their Exif orientation.

    If a file contains several images, the first is used. Files that are not in `ltfast.data.formats.FORMATS`, that have
    more than 8 bits per channel, or that have more pixels than Pillow accepts (179 million) raise an error that names
    the file.

    Attributes:
        paths: the paths of the files, length N.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: Tensor,
        class_names: Sequence[str],
        groups: NDArray[Any] | None = None,
    ) -> None:
        """Create a data set from files.

        Args:
            paths: the paths of the files, length N.
            labels: the labels, (N,), any integer dtype, in [0, C).
            class_names: the class names, length C.
            groups: the group of each image, (N,) strings or integers.

        Raises:
            TypeError: the labels are not integers, or the groups neither strings nor integers.
            ValueError: a label is invalid, or the numbers of paths, labels and groups differ.
        """
        super().__init__(labels, class_names, groups)
        if len(paths) != len(labels):
            raise ValueError(f"paths: expected as many as labels, got {len(paths)} paths and {len(labels)} labels")
        self.paths = [str(path) for path in paths]

    def image(self, index: int) -> Image.Image:
        path = self.paths[index]
        return decode(lambda: open_regular(path), lambda: path)

    def image_name(self, index: int) -> str:
        return self.paths[index]

    def check_header(self, index: int) -> None:
        """Check the format, mode and size of an image without decoding it.

        Raises:
            IndexError, ImageNotFoundError, ImageDecodeError: see `image`.
        """
        self.header(index)

    def header(self, index: int) -> Header:
        path = self.paths[index]
        return check_header(lambda: open_regular(path), lambda: path)

    def subset(self, indices: Tensor) -> "FileDataset":
        paths = [self.paths[i] for i in indices.tolist()]
        return FileDataset(paths, self.labels[indices], self.class_names, self._groups_at(indices))

    def digests(self, *, sizes: bool = True) -> dict[str, str]:
        """Hashes of `labels`, `file names` relative to the deepest common folder, and `file sizes`."""
        folder = os.path.commonprefix(self.paths).rpartition(os.sep)[0]  # noqa: RUF071 (up to a separator)
        names = "\0".join(path[len(folder) :] for path in self.paths)
        digests = {**super().digests(), "file names": _digest(np.frombuffer(os.fsencode(names), np.uint8))}
        return {**digests, "file sizes": _digest(_file_sizes(self.paths))} if sizes else digests


class ReaderDataset(ImageDataset):
    """Images from one of timm's readers (`timm.data.readers`), decoded to RGB on access and rotated according to their
    Exif orientation.

    Attributes:
        reader: the reader.
        positions: the index of each image in the reader, (N,) int64.
    """

    def __init__(
        self,
        reader: Any,
        positions: Tensor,
        labels: Tensor,
        class_names: Sequence[str],
        groups: NDArray[Any] | None = None,
    ) -> None:
        """Create a data set from a reader.

        Args:
            reader: the reader; `reader[i]` is an open file and a target, `reader.filename(i)` the name of the file.
            positions: the index of each image in the reader, (N,) int64.
            labels: the labels, (N,), any integer dtype, in [0, C).
            class_names: the class names, length C.
            groups: the group of each image, (N,) strings or integers.

        Raises:
            TypeError: the labels are not integers, or the groups neither strings nor integers.
            ValueError: a label is invalid, or the number of groups differs.
        """
        super().__init__(labels, class_names, groups)
        self.reader = reader
        self.positions = positions

    def image(self, index: int) -> Image.Image:
        return decode(*self._file(index))

    def header(self, index: int) -> Header:
        return check_header(*self._file(index))

    def _file(self, index: int) -> tuple[Callable[[], Any], Callable[[], str]]:
        """Opens the file of an image, and gives its name."""
        position = int(self.positions[index])
        return lambda: self.reader[position][0], lambda: self.image_name(index)

    def image_name(self, index: int) -> str:
        position = int(self.positions[index])
        return f"{self.reader.filename(position)} (number {position})"

    def subset(self, indices: Tensor) -> "ReaderDataset":
        groups = self._groups_at(indices)
        return ReaderDataset(self.reader, self.positions[indices], self.labels[indices], self.class_names, groups)


def _digest(array: NDArray[Any]) -> str:
    """A short hash of an array's shape and content."""
    result = sha256(repr(array.shape).encode())
    result.update(np.ascontiguousarray(array).reshape(-1).data)
    return result.hexdigest()[:16]


def _file_sizes(paths: Sequence[str]) -> NDArray[np.int64]:
    """The sizes in bytes, -1 for a file that cannot be accessed. Threads hide the latency of a file server."""

    def of_some(start: int) -> list[int]:
        return [_file_size(path) for path in paths[start : start + 1000]]

    with ThreadPoolExecutor(16) as pool:
        return np.array(list(chain.from_iterable(pool.map(of_some, range(0, len(paths), 1000)))))


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # opening the file reports the reason
        return -1
