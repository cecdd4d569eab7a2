"""Augmentations whose last steps a device can apply to a batch.

The host draws the random numbers of these steps for each image, in the order in which it would use them itself, so that
both ways give the same views up to rounding.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose

Pixels = NDArray[np.uint8]  # (H, W, C)
Part = tuple[Tensor, Tensor]  # pixels (H, W, C) uint8 and numbers (P,) float32 of one image; (B, H, W, C), (B, P)


class Step(ABC):
    """A step of an augmentation that the host applies to one image, or a device to a batch.

    Attributes:
        idle: the numbers that leave an image unchanged; as many as `draw` returns.
    """

    idle: tuple[float, ...] = ()

    @abstractmethod
    def __call__(self, image: Any) -> Any:
        """Draw random numbers, and apply the step to an image."""

    def draw(self, pixels: Pixels) -> Sequence[float]:
        """Draw the random numbers that `__call__` draws, for a device; without pixels, from `random` alone.

        Args:
            pixels: the image before the device's steps, which the step may change; empty if the device holds the image.
        """
        return self.idle

    @abstractmethod
    def batched(self) -> nn.Module:
        """A module of `ltfast.data.device_steps`, from images (B, C, H, W) and numbers (B, P) to images."""


class Augmentation(Compose):
    """Steps from a PIL image to a normalised tensor (C, H, W) float32."""

    def split(self) -> "tuple[HostPart, DevicePart]":
        """The same augmentation in two parts. The second one has the last steps, from the first after which all are of
        class `Step`."""
        first = len(self.transforms)
        while first > 0 and isinstance(self.transforms[first - 1], Step):
            first -= 1
        return HostPart(self.transforms[:first], self.transforms[first:]), DevicePart(self.transforms[first:])


class HostPart:
    """Applies the first steps to a PIL image, and draws the numbers of the others."""

    def __init__(self, steps: Sequence[Any], others: Sequence[Step]) -> None:
        self.steps, self.others = steps, others

    def __call__(self, image: Image.Image) -> Part:
        for step in self.steps:
            image = step(image)
        pixels = np.array(image).reshape(image.height, image.width, -1)
        return torch.from_numpy(pixels), self.numbers(pixels)

    def numbers(self, pixels: Pixels) -> Tensor:
        """The numbers of all other steps, (P,) float32. For `pixels` see `Step.draw`."""
        drawn = [number for step in self.others for number in step.draw(pixels)]
        return torch.from_numpy(np.array(drawn, np.float32))  # in a third of the time of torch.tensor


class DevicePart(nn.Module):
    """Applies the steps that are left to a batch: pixels (B, H, W, C) uint8 and numbers (B, P) to images (B, C, H, W)
    float32."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.widths = [len(step.idle) for step in steps]
        self.steps = nn.ModuleList(step.batched() for step in steps)

    def forward(self, part: Part) -> Tensor:
        pixels, numbers = part
        images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        for step, own in zip(self.steps, numbers.split(self.widths, dim=1), strict=True):
            images = step(images, own)
        return images
