import numpy as np
import pytest
import torch

from ltfast.data import ArrayDataset, DataBundle


@pytest.fixture
def colour_bundle():
    """Sixteen 32 x 32 RGB noise images in two classes."""
    images = np.random.RandomState(0).randint(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    data = ArrayDataset(images, torch.arange(16) % 2, ["even", "odd"])
    return DataBundle(data, data, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), image_size=32, channels=3)


@pytest.fixture
def grey_bundle():
    """Sixteen 8 x 8 greyscale noise images in two classes."""
    images = np.random.RandomState(1).randint(0, 256, (16, 8, 8), dtype=np.uint8)
    data = ArrayDataset(images, torch.arange(16) % 2, ["even", "odd"])
    return DataBundle(data, data, (0.5,), (0.25,), image_size=8, channels=1)
