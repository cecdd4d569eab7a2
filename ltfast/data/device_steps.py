"""Steps of an augmentation for a batch on a device, with Pillow's rounding.

Each module takes images, (B, C, H, W) float32 of whole numbers in [0, 255], and its numbers for each image, (B, P)
float32. None of them waits for the device: shapes do not depend on numbers, and an image without a step gets numbers
that leave it unchanged. Sums of whole numbers below 2**24 are exact in float32, so most pixels equal Pillow's.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

CONTRAST, SATURATION = 1, 2  # kinds of blends; others change the brightness
NOISE_LEVELS = 32  # of a standard deviation, in the pixels of an erased rectangle


class Channels(nn.Module):
    """Repeats the channel of greyscale images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        return images.expand(-1, self.channels, -1, -1)


class Crop(nn.Module):
    """Crops (size, size) after black padding; the numbers are x and y of the corner in [-padding, padding]."""

    steps: Tensor

    def __init__(self, size: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("steps", torch.arange(size))

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        padded = F.pad(images, (self.padding,) * 4)
        x, y = (numbers.long() + self.padding).unbind(1)
        columns, rows = _per_image(x) + self.steps, _per_image(y) + self.steps[:, None]
        image, channel = (torch.arange(number, device=images.device) for number in images.shape[:2])
        return padded[_per_image(image), channel[:, None, None], rows, columns]


class Flip(nn.Module):
    """Mirrors an image if its number is 1."""

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        return torch.where(_per_image(numbers[:, 0]) > 0, images.flip(3), images)


class Grey(nn.Module):
    """Makes an image grey if its number is 1."""

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        return torch.where(_per_image(numbers[:, 0]) > 0, _luma(images), images)


class Jitter(nn.Module):
    """Three blends, each with two numbers: its kind and factor; then, with `hue`, a change of the hue, which has one
    number, and three more blends. In this way the steps of an image have any order: those that it has elsewhere have
    the factor 1, and a change of hue of 0 leaves the image unchanged."""

    def __init__(self, hue: bool) -> None:
        super().__init__()
        self.hue = Hue() if hue else None

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        images = _blends(images, numbers[:, :6])
        if self.hue is not None:
            images = self.hue(images, numbers[:, 6:7])
            images = _blends(images, numbers[:, 7:])
        return images


class Hue(nn.Module):
    """Adds the number, in 256ths of a turn, to the hue, which Pillow rounds to 8 bits."""

    hues: Tensor
    saturations: Tensor
    offsets: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Pillow's hue depends on which channel is the largest, by how much, and on the difference of the others
        spread, difference = np.meshgrid(np.arange(256), np.arange(-255, 256), indexing="ij")
        first, second = np.maximum(difference, 0), np.maximum(-difference, 0)
        triples = [(spread, first, second), (second, spread, first), (first, second, spread)]
        hues = np.stack([_hsv(*triple)[..., 0] for triple in triples])
        spread, largest = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
        least = np.maximum(largest - spread, 0)
        self.register_buffer("hues", torch.from_numpy(hues.reshape(-1)))
        self.register_buffer("saturations", torch.from_numpy(_hsv(largest, least, least)[..., 1].reshape(-1)))
        self.register_buffer("offsets", torch.tensor([5.0, 3.0, 1.0]).reshape(3, 1, 1) * 255)

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        if images.shape[1] == 1:
            return images
        red, green, blue = images.unbind(1)
        value = images.amax(1)
        spread = value - images.amin(1)
        is_red, is_green = red == value, green == value
        sector = torch.where(is_red, 0, torch.where(is_green, 1, 2))
        difference = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
        hue = self.hues[(sector * 256 + spread.long()) * 511 + difference.long() + 255]
        saturation = self.saturations[(spread * 256 + value).long()]
        # a sixth of a turn is 255; each channel falls from the value by the saturation times a trapezium of the hue
        place = (6 * ((hue + numbers[:, :, None]) % 256)[:, None] + self.offsets) % 1530
        fall = torch.minimum(place, 1020 - place).clamp_(0, 255)
        turned = _round(value[:, None] * (65025 - saturation[:, None] * fall) / 65025)
        return torch.where(_per_image(numbers[:, 0]) == 0, images, turned)


class Blur(nn.Module):
    """Pillow's GaussianBlur, three box blurs along each axis. The numbers are the weights of the box at a distance of
    one and of two pixels."""

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        near, far = map(_per_image, numbers.unbind(1))
        for axis, padding in ((3, (2, 2, 0, 0)), (2, (0, 0, 2, 2))):
            for _ in range(3):
                padded = F.pad(images, padding, mode="replicate")
                a, b, c, d, e = (padded.narrow(axis, first, images.shape[axis]) for first in range(5))
                images = _round((1 - 2 * near - 2 * far) * c + near * (b + d) + far * (a + e))
        return images


class Cutout(nn.Module):
    """Makes a rectangle black; the numbers are its left, top, right and bottom."""

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        return images.masked_fill(_inside(numbers, images), 0)


class Normalize(nn.Module):
    """Multiplies each channel by `scale` and adds `shift`, both (C, 1, 1)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: NDArray[np.float32], shift: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.from_numpy(scale))
        self.register_buffer("shift", torch.from_numpy(shift))

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        return images.mul(self.scale).add_(self.shift)


class NormalizeErased(Normalize):
    """Normalises, except for a rectangle, whose pixels are noise: 128 means 0, and `NOISE_LEVELS` more means 1. The
    numbers are the rectangle's left, top, right and bottom."""

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        noise = (images - 128) / NOISE_LEVELS
        return torch.where(_inside(numbers, images), noise, super().forward(images, numbers))


def _per_image(numbers: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1)."""
    return numbers[:, None, None, None]


def _round(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_()


def _inside(rectangles: Tensor, images: Tensor) -> Tensor:
    """Whether pixels are inside the rectangles, (B, 4) -> (B, 1, H, W)."""
    left, top, right, bottom = map(_per_image, rectangles.unbind(1))
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    rows = rows[:, None]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def _luma(images: Tensor) -> Tensor:
    """Pillow's conversion to greyscale, (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    grey = (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return grey.add_(32768).div_(65536).floor_()


def _blends(images: Tensor, numbers: Tensor) -> Tensor:
    """Three blends of an image with its grey image, the mean of it, or black; (B, 6) numbers."""
    pixels = images.shape[2] * images.shape[3]
    for kind, factor in numbers.unflatten(1, (3, 2)).permute(1, 2, 0):
        grey = _luma(images)
        mean = (2 * grey.sum((1, 2, 3), dtype=torch.int64) + pixels) // (2 * pixels)
        flat = torch.where(kind == CONTRAST, mean, 0).to(images.dtype)
        other = torch.where(_per_image(kind == SATURATION), grey, _per_image(flat))
        images = images.sub(other).mul_(_per_image(factor)).add_(other).clamp_(0, 255).floor_()
    return images


def _hsv(*channels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Pillow's hue, saturation and value of a picture, (H, W, 3), from its red, green and blue, each (H, W)."""
    pixels = np.stack(channels, -1).astype(np.uint8)
    return np.array(Image.fromarray(pixels).convert("HSV"))
