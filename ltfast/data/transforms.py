"""Transforms from an image to a normalised tensor: those of torchvision and timm under their names in the literature.

For steps in which torchvision's call overhead exceeds the work on a 32-pixel image, Pillow is called directly, with the
same distributions and probabilities.
"""

import random
from collections.abc import Callable
from operator import methodcaller
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import RandAugment, posterize
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, CenterCrop, Compose, Resize

from ltfast.data.bundle import DataBundle
from ltfast.data.datasets import ArrayDataset

Policy = Literal["none", "basic", "cifar", "cifar_autoaugment", "simclr", "imagenet", "mae", "randaugment"]
Transform = Callable[[Image.Image], Tensor]


def train_transform(
    bundle: DataBundle, policy: Policy, image_size: int | None = None, channels: int | None = None
) -> Transform:
    """The training transform of an augmentation policy.

    Args:
        bundle: the data, for the format of the images, their mean and std.
        policy: one of

            - "none": the same as `eval_transform`.
            - "basic": a random crop after padding by an eighth of the size. It does not flip, which suits digits and
              letters.
            - "cifar": "basic", which pads 4 pixels at size 32, and a horizontal flip.
            - "cifar_autoaugment": "cifar", AutoAugment's CIFAR-10 policy and Cutout of half the size (16 of 32 pixels),
              as in ProCo.
            - "simclr": a random resized crop (scale 0.08 to 1), a flip, colour jitter 0.4, 0.4, 0.4, 0.1 with
              probability 0.8, and greyscale with probability 0.2, as in SimCLR at colour strength 0.5, BCL and ProCo.
            - "imagenet": a random resized crop (scale 0.08 to 1), a flip, and colour jitter 0.4, 0.4, 0.4, as in
              ImageNet-LT.
            - "mae": a random resized crop (scale 0.2 to 1, bicubic) and a flip, as in the pre-training of MAE.
            - "randaugment": timm's rand-m9-mstd0.5-inc1 and random erasing 0.25, as in the fine-tuning of MAE.

        image_size: height and width of the output in pixels; None means the bundle's.
        channels: channels of the output; None means the bundle's. Greyscale images can be converted to 3 channels.

    Returns:
        A callable from a PIL image to a (channels, image_size, image_size) float32 tensor, normalised with the bundle's
        mean and std. It draws from the global generators of torch, numpy and `random`.

    Raises:
        ValueError: the policy is unknown, or the size or the number of channels is out of its range.
    """
    size, convert, mean, std = output_format(bundle, image_size, channels)
    fit = fit_steps(bundle, size)
    finish = NormalizedTensor(mean, std)
    crop = PaddedCrop(size)
    resized_crop = RandomResizedCropAndInterpolation(size, interpolation="bilinear")  # scale 0.08 to 1
    flip = Sometimes(0.5, ImageOps.mirror)
    if policy == "none":
        return eval_transform(bundle, image_size, channels)
    if policy == "basic":
        return Compose([convert, *fit, crop, finish])
    if policy == "cifar":
        return Compose([convert, *fit, crop, flip, finish])
    if policy == "cifar_autoaugment":
        return Compose([convert, *fit, crop, flip, _autoaugment, _cutout, finish])
    if policy == "simclr":
        jitter, grey = Sometimes(0.8, ColorJitter(0.4, hue=0.1)), Sometimes(0.2, to_grey)
        return Compose([convert, resized_crop, flip, jitter, grey, finish])
    if policy == "imagenet":
        return Compose([convert, resized_crop, flip, ColorJitter(0.4), finish])
    if policy == "mae":
        gentle_crop = RandomResizedCropAndInterpolation(size, scale=(0.2, 1.0), interpolation="bicubic")
        return Compose([convert, gentle_crop, flip, finish])
    if policy == "randaugment":
        augment = create_transform(
            (len(mean), size, size),
            is_training=True,
            auto_augment="rand-m9-mstd0.5-inc1",
            interpolation="bicubic",
            mean=mean,
            std=std,
            re_prob=0.25,
            re_mode="pixel",
        )
        (rand_augment,) = (step for step in augment.transforms if isinstance(step, RandAugment))
        for op in rand_augment.ops:
            if op.aug_fn is posterize:
                op.aug_fn = _posterize
        return Compose([convert, augment])
    raise ValueError(f"policy: expected one of {', '.join(get_args(Policy))}, got {policy!r}")


def eval_transform(bundle: DataBundle, image_size: int | None = None, channels: int | None = None) -> Transform:
    """The evaluation transform, which is deterministic.

    Images in arrays are resized if their size differs. Images in files are resized so that the short side is 256 / 224
    of the output size, and then cropped at the centre. Both are then normalised. For arguments, return value and errors
    see `train_transform`.
    """
    size, convert, mean, std = output_format(bundle, image_size, channels)
    return Compose([convert, *fit_steps(bundle, size), NormalizedTensor(mean, std)])


def output_format(
    bundle: DataBundle, image_size: int | None, channels: int | None
) -> tuple[int, methodcaller, tuple[float, ...], tuple[float, ...]]:
    """The size of the output, the conversion to its channels, and its mean and std."""
    size = bundle.image_size if image_size is None else image_size
    if size < 1:
        raise ValueError(f"image_size: expected at least 1 pixel, got {size}")
    channels = bundle.channels if channels is None else channels
    if channels not in (bundle.channels, 3):
        raise ValueError(f"channels: expected one of {sorted({bundle.channels, 3})}, got {channels}")
    convert = methodcaller("convert", "RGB" if channels == 3 else "L")
    copies = channels // bundle.channels
    return size, convert, bundle.mean * copies, bundle.std * copies


def fit_steps(bundle: DataBundle, size: int) -> list[Any]:
    if not isinstance(bundle.train, ArrayDataset):
        return [CentreCrop(size * 256 // 224, size)]
    return [] if size == bundle.image_size else [Resize((size, size))]


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
        if max(image.size) <= 4 * min(image.size):
            return self.crop(self.resize(image))
        (left, right), (top, bottom) = (self._kept(side, min(image.size)) for side in image.size)
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, (left, top, right, bottom))

    def _kept(self, side: int, shortest: int) -> tuple[float, float]:
        """The interval of a side that the crop keeps, in pixels of the image."""
        resized = self.short * side // shortest
        first = round((resized - self.size) / 2)
        return first * side / resized, (first + self.size) * side / resized


class Sometimes:
    """Applies a step with probability `p`."""

    def __init__(self, p: float, step: Callable[[Image.Image], Image.Image]) -> None:
        self.p = p
        self.step = step

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.step(image) if random.random() < self.p else image


class PaddedCrop:
    """A random crop of (size, size) after black padding of size // 8, equivalent to torchvision's RandomCrop."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        padding = self.size // 8
        x, y = (random.randint(-padding, padding) for _ in range(2))
        return image.crop((x, y, x + self.size, y + self.size))  # black outside the image


class ColorJitter:
    """torchvision's ColorJitter: changes brightness, contrast and saturation by up to `strength` and the hue by up to
    `hue` turns, in random order."""

    def __init__(self, strength: float, hue: float = 0.0) -> None:
        self.strength = strength
        self.hue = hue

    def __call__(self, image: Image.Image) -> Image.Image:
        for step in random.sample(_JITTERS, len(_JITTERS)):
            if step is _shift_hue:
                image = _shift_hue(image, random.uniform(-self.hue, self.hue))
            else:
                image = step(image, random.uniform(1 - self.strength, 1 + self.strength))
        return image


def _brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    """Pillow's ImageEnhance.Contrast with a faster mean: Pillow's takes three times as long."""
    mean = int(np.asarray(image.convert("L")).mean() + 0.5)
    return Image.blend(Image.new(image.mode, image.size, (mean,) * len(image.getbands())), image, factor)


def _saturation(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    shift = int(turns * 255)  # torchvision's rounding
    if shift == 0 or image.mode == "L":
        return image
    pixels = np.array(image.convert("HSV"))
    pixels[..., 0] += np.uint8(shift % 256)  # a turn is 256, so uint8 wraps around
    return Image.frombytes("HSV", image.size, pixels.tobytes()).convert("RGB")


_JITTERS = (_brightness, _contrast, _saturation, _shift_hue)


def _posterize(image: Image.Image, bits: int, **unused: Any) -> Image.Image:
    """timm's posterize, extended to 0 bits, which timm's policy uses and Pillow 13 does not accept."""
    return posterize(image, bits) if bits else Image.new(image.mode, image.size)


def to_grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert(image.mode)


def _autoaugment(image: Image.Image) -> Image.Image:
    """AutoAugment's policy for CIFAR-10 (Cubuk et al., CVPR 2019) as in ProCo: grey fill, bicubic shear, and only
    anticlockwise rotation."""
    for name, p, tenth in random.choice(_CIFAR_POLICIES):
        if random.random() < p:
            image = _autoaugment_step(image, name, (tenth or 0) / 9)
    return image


def _autoaugment_step(image: Image.Image, name: str, level: float) -> Image.Image:
    """Apply the operation with torchvision's `name` at a level in [0, 1]."""
    signed = random.choice((-level, level))
    grey = (128,) * len(image.getbands())
    width, height = image.size
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return getattr(ImageEnhance, name)(image).enhance(1 + 0.9 * signed)
    if name == "Rotate":
        return image.rotate(30 * level, fillcolor=grey)
    if name == "ShearY":
        shear = (1, 0, 0, 0.3 * signed, 1, 0)
        return image.transform(image.size, Image.Transform.AFFINE, shear, Image.Resampling.BICUBIC, fillcolor=grey)
    if name in ("TranslateX", "TranslateY"):
        way = 150 / 331 * signed
        shift = (1, 0, way * width, 0, 1, 0) if name == "TranslateX" else (1, 0, 0, 0, 1, way * height)
        return image.transform(image.size, Image.Transform.AFFINE, shift, fillcolor=grey)
    if name == "Posterize":
        return ImageOps.posterize(image, 8 - round(4 * level))
    if name == "Solarize":
        return ImageOps.solarize(image, round(256 * (1 - level)))
    return getattr(ImageOps, name.lower())(image)  # AutoContrast, Equalize, Invert


_CIFAR_POLICIES = AutoAugment(AutoAugmentPolicy.CIFAR10).policies  # torchvision has the table of the paper


def _cutout(image: Image.Image) -> Image.Image:
    """Draw a black square of half the image size around a random pixel, clipped at the border (DeVries and Taylor,
    "Improved Regularization of Convolutional Neural Networks with Cutout", 2017). torchvision's erasing never crosses
    the border."""
    image = image.copy()
    width, height = image.size
    half = width // 4
    x, y = random.randrange(width), random.randrange(height)
    image.paste(0, (max(x - half, 0), max(y - half, 0), min(x + half, width), min(y + half, height)))
    return image


class NormalizedTensor:
    """torchvision's PILToTensor, ToDtype and Normalize in one step, which is much faster on small images."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        mean_, std_ = (np.array(values).reshape(-1, 1, 1) for values in (mean, std))
        self.scale = (1 / (255 * std_)).astype(np.float32)
        self.shift = (-mean_ / std_).astype(np.float32)

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
        values = pixels.astype(np.float32, order="C")
        values *= self.scale
        values += self.shift
        return torch.from_numpy(values)
