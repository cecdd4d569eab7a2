"""Augmented views whose last steps a device applies to a batch; see `ltfast.data.steps`."""

import random
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ltfast.data.datasets import ArrayDataset, ImageDataset
from ltfast.data.patches import PatchViews
from ltfast.data.seeding import derive_seed
from ltfast.data.steps import Augmentation, HostPart, Part
from ltfast.data.views import SeededViews

_NO_PIXELS = np.empty((0, 0, 0), np.uint8)


def device_views(
    dataset: ImageDataset, transforms: Sequence[Augmentation | PatchViews], *, seed: int
) -> "tuple[SeededViews | HeldViews, DeviceViews]":
    """The views of `SeededViews(dataset, transforms, seed=seed)` in two parts.

    If the images are in an array and a device can apply all steps of all views, the module has the array as a buffer,
    and the first part loads no images.

    Args:
        dataset, transforms, seed: see `SeededViews`.

    Returns:
        The part of the host, and a module that makes the views of a batch from its parts without the labels, a sequence
        of one element for each transform. The views equal those of `SeededViews` up to rounding.

    Raises:
        TypeError: a transform is neither from `train_transform` or `eval_transform` nor a `PatchViews`.
        ValueError: see `SeededViews`.
    """
    for transform in transforms:
        if not isinstance(transform, Augmentation | PatchViews):
            raise TypeError(f"transforms: expected results of train_transform, or PatchViews, got {transform!r}")
    parts = [transform.split() for transform in transforms]
    hosts, devices = [host for host, _ in parts], [device for _, device in parts]
    views = SeededViews(dataset, hosts, seed=seed)
    whole = [host for host in hosts if isinstance(host, HostPart) and not host.steps]  # the device applies all steps
    if isinstance(dataset, ArrayDataset) and len(whole) == len(hosts):
        return HeldViews(dataset.labels, whole, seed=seed), DeviceViews(devices, _held(dataset))
    return views, DeviceViews(devices)


class HeldViews(Dataset[tuple[Any, ...]]):
    """The host's part of views of images that the device holds: `((index, numbers), ..., label)` with a pair for each
    view, indexed as `SeededViews` by pairs `(draw, index)`.

    A view takes microseconds, so the generators of numpy and torch, from which these views do not draw, are not seeded,
    and the state of the generator of `random` is preserved once per batch.
    """

    def __init__(self, labels: Tensor, hosts: Sequence[HostPart], *, seed: int) -> None:
        self.labels, self.hosts, self.seed = labels, hosts, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        (item,) = self.__getitems__([key])
        return item

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[tuple[Any, ...]]:
        """The items of a batch; a DataLoader calls this."""
        indices = torch.tensor([index for _, index in keys])
        labels = self.labels[indices].tolist()
        state = random.getstate()
        try:
            return [
                (*self._views(draw, index), label)
                for (draw, _), index, label in zip(keys, indices, labels, strict=True)
            ]
        finally:
            random.setstate(state)

    def _views(self, draw: int, index: Tensor) -> list[Part]:
        random.seed(derive_seed("views", self.seed, draw))
        return [(index, host.numbers(_NO_PIXELS)) for host in self.hosts]


class DeviceViews(nn.Module):
    """Makes the views of a batch.

    Args:
        parts: a module for each view.
        held: makes pixels from the indices of images; None means that the batches have pixels.
    """

    def __init__(self, parts: Sequence[nn.Module], held: nn.Module | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.held = held

    def forward(self, views: Sequence[Any]) -> list[Any]:
        if self.held is not None:
            views = [(self.held(indices), numbers) for indices, numbers in views]
        return [part(view) for part, view in zip(self.parts, views, strict=True)]


class HeldImages(nn.Module):
    """The images of an array, (N, H, W) or (N, H, W, C) uint8; makes pixels (B, H, W, C) from indices (B,)."""

    images: Tensor

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images.reshape(*images.shape[:3], -1))

    def forward(self, indices: Tensor) -> Tensor:
        return self.images[indices]


_HELD: WeakKeyDictionary[ArrayDataset, HeldImages] = WeakKeyDictionary()


def _held(dataset: ArrayDataset) -> HeldImages:
    """The images of a data set. The stages of a run share them, so that the device holds them once."""
    if dataset not in _HELD:
        _HELD[dataset] = HeldImages(torch.from_numpy(np.require(dataset.images, requirements=["C", "W"])))
    return _HELD[dataset]
