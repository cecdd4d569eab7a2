"""Query and key views of an image, and patches of the query view with their boxes."""

import random
from collections.abc import Callable, Sequence
from copy import copy
from math import floor, sqrt
from typing import Any, Literal, get_args

import torch
from PIL import Image, ImageFilter
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor, nn
from torchvision.transforms import Compose

from ltfast.data import device_steps
from ltfast.data.bundle import DataBundle
from ltfast.data.steps import Augmentation, DevicePart, Part, Pixels, Step
from ltfast.data.transforms import (
    ColorJitter,
    Flip,
    Grey,
    NormalizedTensor,
    PaddedCrop,
    Sometimes,
    fit_steps,
    output_format,
)
from ltfast.errors import InputError, SettingError

PatchPolicy = Literal["basic", "cifar", "dscl"]
_RATIO = (3 / 4, 4 / 3)  # range of a patch's aspect ratio, width / height


class PatchViews:
    """A transform from a PIL image to `(query, key, patches, boxes)`, as in the code of DSCL's authors.

    The patches are cropped from the query view before its colour augmentation, and get their own.

    Args:
        bundle: the data, for the format of the images, their mean and std.
        policy: "basic": a random crop after padding by an eighth of the size (for digits and letters). "cifar": the
            same with flips. "dscl", as in the authors' code: random resized crops (scale 0.08 to 1), flips, colour
            jitter 0.4, 0.4, 0.4, 0.1 with probability 0.8, greyscale with 0.2, and above 64 pixels blur with 0.5; the
            key's jitter is always applied and has no hue, and the key has no greyscale and blur.
        image_size: height and width S of query and key, in pixels.
        patches: number of patches per image L, at least 0.
        patch_size: height and width P of the resized patches, in pixels.
        scale: minimum and maximum area of a patch, as a fraction of the query view's area.

    Shapes: query and key (channels, S, S), patches (L, channels, P, P), boxes (L, 4) as x1, y1, x2, y2 in pixels of the
    query; all float32. Random numbers come from the global generators of `random` and numpy.

    Raises:
        InputError: the policy is unknown, or an argument is out of its range.
    """

    def __init__(
        self,
        bundle: DataBundle,
        policy: PatchPolicy,
        image_size: int,
        *,
        patches: int,
        patch_size: int,
        scale: Sequence[float],
    ) -> None:
        if policy not in get_args(PatchPolicy):
            raise InputError(f"policy: expected one of {', '.join(get_args(PatchPolicy))}, got {policy!r}")
        if patches < 0:
            raise SettingError("patches", "at least 0", patches)
        if patch_size < 1:
            raise SettingError("patch_size", "at least 1 pixel", patch_size)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise InputError(f"scale: expected two ascending fractions in (0, 1], got {tuple(scale)}")
        size, convert, mean, std = output_format(bundle, image_size, None)
        self.patches, self.patch_size, self.scale = patches, patch_size, tuple(scale)
        finish = NormalizedTensor(mean, std)
        flip = Sometimes(0.5, Flip())
        crop: list[Callable[[Any], Any]] = [*fit_steps(bundle, size), PaddedCrop(size)]
        if policy == "dscl":
            crop = [RandomResizedCropAndInterpolation(size, interpolation="bilinear")]
        flips = [] if policy == "basic" else [flip]
        self.crop_query = Compose([convert, *crop, *flips])
        self.crop_key = Compose([convert, *crop])
        colours: list[Step] = []
        if policy == "dscl":
            colours = [Sometimes(0.8, ColorJitter(0.4, hue=0.1)), Sometimes(0.2, Grey())]
            if size > 64:
                colours.append(Sometimes(0.5, Blur()))
        self.colour_query: Any = Augmentation([*colours, finish])
        self.colour_patch: Any = Augmentation([*flips, *colours, finish])
        self.colour_key: Any = Augmentation([*([ColorJitter(0.4)] if policy == "dscl" else []), *flips, finish])
        self.stack: Callable[[Any], Any] = torch.stack
        self.no_patches: Any = torch.empty(0, len(mean), patch_size, patch_size)

    def split(self) -> "tuple[PatchViews, DevicePatchViews]":
        """The same views in two parts. The host's gives pixels and numbers, from which a device makes query, key and
        patches; see `ltfast.data.steps`."""
        host = copy(self)
        host.colour_query, query = self.colour_query.split()
        host.colour_key, key = self.colour_key.split()
        host.colour_patch, patch = self.colour_patch.split()
        host.stack = _stack_parts
        pixels = self.no_patches.new_empty(0, *self.no_patches.shape[2:], self.no_patches.shape[1], dtype=torch.uint8)
        host.no_patches = pixels, torch.empty(0, sum(patch.widths))
        return host, DevicePatchViews(query, key, patch)

    def __call__(self, image: Image.Image) -> tuple[Any, Any, Any, Tensor]:
        query, key = self.crop_query(image), self.crop_key(image)
        boxes = [self._box(query) for _ in range(self.patches)]
        size = (self.patch_size, self.patch_size)
        patches = [self.colour_patch(query.resize(size, Image.Resampling.BILINEAR, box)) for box in boxes]
        return (
            self.colour_query(query),
            self.colour_key(key),
            self.stack(patches) if patches else self.no_patches,
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        )

    def _box(self, image: Image.Image) -> tuple[int, int, int, int]:
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, _RATIO)
        return left, top, left + width, top + height


class DevicePatchViews(nn.Module):
    """Applies the steps that are left for query, key and patches to a batch."""

    def __init__(self, query: DevicePart, key: DevicePart, patch: DevicePart) -> None:
        super().__init__()
        self.query, self.key, self.patch = query, key, patch

    def forward(self, parts: tuple[Part, Part, Part, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query, key, (pixels, numbers), boxes = parts
        patches = self.patch((pixels.flatten(0, 1), numbers.flatten(0, 1)))
        return self.query(query), self.key(key), patches.unflatten(0, pixels.shape[:2]), boxes


class Blur(Step):
    """Pillow's GaussianBlur with a random standard deviation."""

    idle = (0, 0)

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(self._deviation()))

    def draw(self, pixels: Pixels) -> Sequence[float]:
        """The weights of Pillow's box blur, three of which make a Gaussian blur (Gwosdek et al., "Theoretical
        Foundations of Gaussian Convolution by Extended Box Filtering", 2011)."""
        variance = self._deviation() ** 2 / 3
        whole = floor((sqrt(12 * variance + 1) - 1) / 2)  # pixels on each side that have the full weight, at most 1
        part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
        full = 1 / (2 * (whole + part) + 1)
        last = (1 - (2 * whole + 1) * full) / 2
        return (full, last) if whole else (last, 0)

    def batched(self) -> nn.Module:
        return device_steps.Blur()

    def _deviation(self) -> float:
        return random.uniform(0.1, 2.0)


def _stack_parts(parts: Sequence[Part]) -> Part:
    pixels, numbers = map(torch.stack, zip(*parts, strict=True))
    return pixels, numbers
