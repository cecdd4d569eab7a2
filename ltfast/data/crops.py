"""Crops of an image that is first resized."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import CenterCrop, Resize
from torchvision.transforms.functional import five_crop

from ltfast.data.steps import Augmentation

_FIRST, _MIDDLE, _LAST = 0.0, 0.5, 1.0  # places of a crop along a side
_FIVE = (*((x, y) for y in (_FIRST, _LAST) for x in (_FIRST, _LAST)), (_MIDDLE, _MIDDLE))  # torchvision's order


class CentreCrop:
    """torchvision's Resize of the short side to `short` pixels and CenterCrop to (size, size), with size <= short.

    If an image's aspect ratio exceeds four, only the part inside the crop is resized, since 2 x 6000 pixels would
    otherwise become 256 x 768,000. The pixel values then equal torchvision's to within one level; those of other images
    are the same.
    """

    def __init__(self, short: int, size: int) -> None:
        self.short, self.size = short, size
        self.resize, self.crop = Resize(short), CenterCrop(size)

    def __call__(self, image: Image.Image) -> Image.Image:
        if _is_long(image):
            return _resized_part(image, self.short, self.size, _MIDDLE, _MIDDLE)
        return self.crop(self.resize(image))


class FiveCrop:
    """torchvision's Resize of the short side to `short` pixels and FiveCrop to (size, size), with size <= short: the
    corners top left, top right, bottom left and bottom right, and the centre. Of long images, see `CentreCrop`.

    Args:
        short, size: see above, in pixels.
        mirrored: whether to add the five crops of the mirror image, as torchvision's TenCrop.
    """

    def __init__(self, short: int, size: int, *, mirrored: bool = False) -> None:
        self.short, self.size, self.mirrored = short, size, mirrored
        self.resize = Resize(short)

    def __call__(self, image: Image.Image) -> list[Image.Image]:
        long = _is_long(image)
        whole = image if long else self.resize(image)
        variants = [whole, ImageOps.mirror(whole)] if self.mirrored else [whole]
        if long:
            return [_resized_part(one, self.short, self.size, x, y) for one in variants for x, y in _FIVE]
        return [crop for one in variants for crop in five_crop(one, [self.size, self.size])]


class CropViews:
    """Turns an evaluation transform into one that makes several crops of an image, as in the test-time ensemble of LIFT
    (Shi et al., ICML 2024): from a PIL image to (5, channels, size, size) float32, or to 10 crops.

    The short side of the image becomes 24 pixels longer than the crops if these have 224 pixels, and longer in
    proportion, but by at least one pixel, if they have another size.

    Args:
        evaluation: from `eval_transform`; its conversion of the channels and its normalisation are used.
        size: height and width of its output in pixels.
        mirrored: see `FiveCrop`.
    """

    def __init__(self, evaluation: Augmentation, size: int, *, mirrored: bool = False) -> None:
        self.convert, *_, self.finish = evaluation.transforms
        self.crop = FiveCrop(size + max(1, round(size * 24 / 224)), size, mirrored=mirrored)

    def __call__(self, image: Image.Image) -> Tensor:
        crops: Sequence[Image.Image] = self.crop(self.convert(image))
        return torch.stack([self.finish(crop) for crop in crops])


def _is_long(image: Image.Image) -> bool:
    return max(image.size) > 4 * min(image.size)


def _resized_part(image: Image.Image, short: int, size: int, x: float, y: float) -> Image.Image:
    """The crop (size, size) at a place of the image whose short side is resized to `short`; only this part is resized.

    Args:
        x, y: from 0 to 1, the place of the crop between the first and the last of its possible places along a side.
    """

    def kept(side: int, place: float) -> tuple[float, float]:
        """The interval of a side that the crop keeps, in pixels of the image."""
        resized = short * side // min(image.size)
        first = round((resized - size) * place)
        return first * side / resized, (first + size) * side / resized

    (left, right), (top, bottom) = kept(image.width, x), kept(image.height, y)
    return image.resize((size, size), Image.Resampling.BILINEAR, (left, top, right, bottom))
