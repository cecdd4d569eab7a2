"""Checks images before a run, so that a damaged file does not stop it hours later."""

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any, Literal

import torch
from rich.console import Console
from torch import distributed

from ltfast.data.bundle import DataBundle
from ltfast.data.datasets import ArrayDataset, FileDataset, ImageDataset
from ltfast.data.decode import ImageDecodeError, ImageNotFoundError
from ltfast.errors import InputError
from ltfast.progress import Progress
from ltfast.terminal import shown

_SHOWN = 5  # maximum number of images named in a message
_SPLITS = {"train": "training images", "validation": "validation images", "test": "test images"}
_BrokenImage = ImageDecodeError | ImageNotFoundError


def check_images(
    bundle: DataBundle,
    *,
    skip_broken: bool = False,
    splits: Collection[Literal["train", "validation", "test"]] = ("train", "validation", "test"),
) -> DataBundle:
    """Check that images can be read, and either raise an error or skip those that cannot.

    Files are checked in threads. If `torch.distributed` is initialised, each process checks a part of the files, and
    all processes must call this function. The first process shows its progress.

    Args:
        bundle: the data.
        skip_broken: whether to decode every image and skip those that cannot be decoded; the first process prints
            their number and the names of some. Otherwise only the headers of a `FileDataset` are read (format, mode
            and size), and damage after the header is reported when the image is decoded.
        splits: the splits to check.

    Returns:
        The bundle without the skipped images.

    Raises:
        ImageNotFoundError, ImageDecodeError: a file is missing or has an invalid header; the message gives their
            number.
        InputError: `skip_broken` leaves a class without training images, or leaves no validation or test image.
    """
    checked: dict[str, Any] = {
        split: _checked(images, split, skip_broken)
        for split in splits
        if (images := getattr(bundle, split)) is not None
    }
    return replace(bundle, **checked)


def _checked(images: ImageDataset, split: str, skip_broken: bool) -> ImageDataset:
    if isinstance(images, ArrayDataset) or not (skip_broken or isinstance(images, FileDataset)):
        return images
    what = _SPLITS[split]
    rank, world_size = (
        (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    )
    console = Console(quiet=rank != 0, soft_wrap=True, highlight=False, markup=False, emoji=False)
    look = images.check_header if isinstance(images, FileDataset) and not skip_broken else images.image
    broken = _look_at(look, range(rank, len(images), world_size), console, f"checking {what}")
    if world_size > 1:
        shares: list[Any] = [None] * world_size
        distributed.all_gather_object(shares, broken)
        broken = {index: error for share in shares for index, error in share.items()}
    broken = dict(sorted(broken.items()))
    if not broken:
        return images
    if not skip_broken:
        raise _refusal(list(broken.values()), f"{len(images):,} {what}")
    kept = torch.tensor([index for index in range(len(images)) if index not in broken], dtype=torch.int64)
    _check_left(images, kept, broken, split)
    console.print(f"left out {len(broken):,} of {len(images):,} {what}:")
    for error in list(broken.values())[:_SHOWN]:
        console.print(f"  {shown(str(error))}")
    if len(broken) > _SHOWN:
        console.print(f"  and {len(broken) - _SHOWN:,} more")
    return images.subset(kept)


def _look_at(look: Callable[[int], Any], indices: range, console: Console, title: str) -> dict[int, _BrokenImage]:
    """The error of each broken image among those at `indices`, by index."""
    threads = min(32, (os.cpu_count() or 1) + 4)  # the default of concurrent.futures, for mixed I/O and decoding
    with (
        Progress(console) as progress,
        ThreadPool(threads) as pool,
    ):
        errors = pool.imap(partial(_error, look), indices, chunksize=16)
        task = progress.add_task(title, total=len(indices))
        found = {}
        for index, error in zip(indices, errors, strict=True):
            if error is not None:
                found[index] = error
            progress.advance(task)
        return found


def _error(look: Callable[[int], Any], index: int) -> _BrokenImage | None:
    try:
        look(index)
    except (ImageDecodeError, ImageNotFoundError) as error:
        return type(error)(str(error))  # drop the traceback, which would keep the file's content in memory
    return None


def _refusal(errors: list[_BrokenImage], what: str) -> _BrokenImage:
    first, others = errors[0], errors[1:]
    more = "".join(f"; {error}" for error in others[: _SHOWN - 1]) + ("; ..." if len(errors) > _SHOWN else "")
    return type(first)(f"{first}{more} ({len(errors):,} of {what}; --skip-broken leaves out what cannot be decoded)")


def _check_left(images: ImageDataset, kept: torch.Tensor, broken: dict[int, _BrokenImage], split: str) -> None:
    """Check that the kept images include one of each class for training, or at least one for validation or testing."""
    if split != "train":
        if len(kept) == 0:
            raise InputError(
                f"none of the {len(images):,} {_SPLITS[split]} can be decoded: {next(iter(broken.values()))}"
            )
        return
    left = torch.bincount(images.labels[kept], minlength=len(images.class_names))
    emptied = [label for label in images.labels.unique().tolist() if left[label] == 0]
    if emptied:
        names = ", ".join(images.class_names[label] for label in emptied[:_SHOWN])
        first = next(error for index, error in broken.items() if images.labels[index] == emptied[0])
        raise InputError(
            f"expected training images of all {len(images.class_names)} classes; for {len(emptied)} of them, no image "
            f"can be decoded: {names}{', ...' if len(emptied) > _SHOWN else ''} ({first})"
        )
