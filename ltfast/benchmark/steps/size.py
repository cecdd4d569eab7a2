"""The size of a training step."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """The size of the network, the images, the batch and the data of a step.

    Attributes:
        backbone: timm's name.
        images: images per batch, an even number; ProCo has three views of each, DSCL two and patches.
        pixels: height and width of an image.
        classes: the number of classes.
        imbalance: the ratio of the largest to the smallest class's number of images.
        queue: the keys in DSCL's queue, a multiple of `images`.
        patch_pixels: height and width of DSCL's patches.
    """

    backbone: str
    images: int
    pixels: int = 224
    classes: int = 1000
    imbalance: float = 256.0
    queue: int = 65536
    patch_pixels: int = 64

    def class_counts(self) -> Tensor:
        """The training images of each class, (classes,) int64."""
        return (1280 * self.imbalance ** -torch.linspace(0, 1, self.classes)).round().long()
