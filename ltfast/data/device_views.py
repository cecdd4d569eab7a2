"""Augmented views whose last steps a device applies to a batch; see `ltfast.data.steps`."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ltfast.data.datasets import ArrayDataset, ImageDataset
from ltfast.data.patches import PatchViews
from ltfast.data.steps import Augmentation, HostPart, Part
from ltfast.data.views import SeededViews

_NO_PIXELS = np.empty((0, 0, 0), np.uint8)


def device_views(
    dataset: ImageDataset, transforms: Sequence[Augmentation | PatchViews], *, seed: int
) -> tuple[SeededViews, nn.Module]:
    """The views of `SeededViews(dataset, transforms, seed=seed)` in two parts.

    If the images are in an array and a device can apply all steps of all views, the module has the array as a buffer,
    and the first part loads no images.

    Args:
        dataset, transforms, seed: see `SeededViews`.

    Returns:
        The part of the host, and a module that makes the views of a batch from its parts without the labels, a sequence
        of one element for each transform. The views equal those of `SeededViews` up to rounding.
    """
    hosts, devices = zip(*(transform.split() for transform in transforms), strict=True)
    if isinstance(dataset, ArrayDataset) and all(isinstance(host, HostPart) and not host.steps for host in hosts):
        views = SeededViews(_Indices(dataset.labels), [_IndexPart(host) for host in hosts], seed=seed)
        return views, DeviceViews(devices, _held(dataset))
    return SeededViews(dataset, hosts, seed=seed), DeviceViews(devices)


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


class _Indices(Dataset[tuple[int, int]]):
    """The index and the label of each image."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, int(self.labels[index])


class _IndexPart:
    """Draws the numbers for an image that the device holds."""

    def __init__(self, host: HostPart) -> None:
        self.host = host

    def __call__(self, index: int) -> Part:
        return torch.tensor(index), self.host.numbers(_NO_PIXELS)


_HELD: WeakKeyDictionary[ArrayDataset, HeldImages] = WeakKeyDictionary()


def _held(dataset: ArrayDataset) -> HeldImages:
    """The images of a data set. The stages of a run share them, so that the device holds them once."""
    if dataset not in _HELD:
        _HELD[dataset] = HeldImages(torch.from_numpy(np.require(dataset.images, requirements=["C", "W"])))
    return _HELD[dataset]
