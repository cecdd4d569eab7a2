"""A long-tailed data set of noise, on which the methods' own code can build its stages."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ltfast.benchmark.steps.size import Size
from ltfast.data import DataBundle
from ltfast.data.datasets import ImageDataset


class NoiseDataset(ImageDataset):
    """RGB images of noise, which are drawn when they are loaded.

    Args:
        labels: (N,) int64, in [0, C).
        num_classes: C.
        pixels: height and width of an image.
    """

    def __init__(self, labels: Tensor, num_classes: int, pixels: int) -> None:
        super().__init__(labels, [str(number) for number in range(num_classes)])
        self.pixels = pixels

    def image(self, index: int) -> Image.Image:
        random = np.random.default_rng(index)
        return Image.fromarray(random.integers(0, 256, (self.pixels, self.pixels, 3), dtype=np.uint8))

    def subset(self, indices: Tensor) -> "NoiseDataset":
        return NoiseDataset(self.labels[indices], len(self.class_names), self.pixels)


def noise_bundle(size: Size) -> DataBundle:
    """A long-tailed training set and one test image."""
    labels = torch.repeat_interleave(torch.arange(size.classes), size.class_counts())
    train = NoiseDataset(labels, size.classes, size.pixels)
    test = train.subset(torch.zeros(1, dtype=torch.int64))
    return DataBundle(train, test, (0.5,) * 3, (0.25,) * 3, image_size=size.pixels, channels=3, named=False)
