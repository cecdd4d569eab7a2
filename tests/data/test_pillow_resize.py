"""Resizing with tensors gives the bytes of Pillow, in an exported program as it is used."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.export import Dim
from torchvision.transforms import Resize

from ltfast.data.crops import CentreCrop
from ltfast.data.pillow_resize import PixelCrop, PixelResize


class Bytes(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, images):
        return self.step(images.double()).to(torch.uint8)


@pytest.mark.parametrize(
    ("step", "pillow"),
    [
        pytest.param(PixelCrop(36, 32), CentreCrop(36, 32), id="crop"),
        pytest.param(PixelCrop(8, 8), CentreCrop(8, 8), id="square", marks=pytest.mark.slow),
        pytest.param(PixelResize(24), Resize((24, 24)), id="resize", marks=pytest.mark.slow),
    ],
)
def test_every_byte_is_that_of_pillow(step, pillow):
    square = isinstance(step, PixelResize)
    height, width = (Dim("side"),) * 2 if square else (Dim("height"), Dim("width"))
    axes = {0: Dim("batch"), 2: height, 3: width}
    example = torch.zeros(2, 3, 41 if square else 37, 41, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(Bytes(step), (example,), dynamic_shapes=(axes,), strict=False).module()
    random = np.random.default_rng(0)
    for number in range(120):
        height, width = np.exp(random.uniform(0, np.log(400), 2)).round().astype(int)
        if square:
            height = width
        images = random.integers(0, 256, (random.integers(1, 4), height, width, 3), dtype=np.uint8)
        if number % 4 == 0:
            images = np.where(images > 127, np.uint8(255), np.uint8(0))
        found = program(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        expected = np.stack([np.asarray(pillow(Image.fromarray(image))) for image in images])
        assert np.array_equal(found.numpy(), expected), (height, width)
