"""Query and key views of an image, and patches of the query view with their boxes."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import Compose

from ltfast.data.bundle import DataBundle
from ltfast.data.transforms import (
    ColorJitter,
    NormalizedTensor,
    PaddedCrop,
    Sometimes,
    fit_steps,
    output_format,
    to_grey,
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
        self.finish = NormalizedTensor(mean, std)
        flip = Sometimes(0.5, ImageOps.mirror)
        crop: list[Callable[[Any], Any]] = [*fit_steps(bundle, size), PaddedCrop(size)]
        if policy == "dscl":
            crop = [RandomResizedCropAndInterpolation(size, interpolation="bilinear")]
        flips = [] if policy == "basic" else [flip]
        self.crop_query = Compose([convert, *crop, *flips])
        self.crop_key = Compose([convert, *crop])
        colours = []
        if policy == "dscl":
            colours = [Sometimes(0.8, ColorJitter(0.4, hue=0.1)), Sometimes(0.2, to_grey)]
            if size > 64:
                colours.append(Sometimes(0.5, _blur))
        self.colour_query = Compose([*colours, self.finish])
        self.colour_patch = Compose([*flips, *colours, self.finish])
        self.colour_key = Compose([*([ColorJitter(0.4)] if policy == "dscl" else []), *flips, self.finish])

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query, key = self.crop_query(image), self.crop_key(image)
        boxes = [self._box(query) for _ in range(self.patches)]
        size = (self.patch_size, self.patch_size)
        patches = [self.colour_patch(query.resize(size, Image.Resampling.BILINEAR, box)) for box in boxes]
        finished = self.colour_query(query)
        empty = finished.new_empty(0, len(finished), *size)
        return (
            finished,
            self.colour_key(key),
            torch.stack(patches) if patches else empty,
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        )

    def _box(self, image: Image.Image) -> tuple[int, int, int, int]:
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, _RATIO)
        return left, top, left + width, top + height


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
