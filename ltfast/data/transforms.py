"""Transforms from an image to a normalised tensor: those of torchvision and timm under their names in the literature.

For steps in which torchvision's call overhead exceeds the work on a 32-pixel image, Pillow is called directly, with the
same distributions and probabilities.
"""

import random
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import RandAugment, posterize
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor, nn
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, Resize

from ltfast.data import device_steps
from ltfast.data.bundle import DataBundle
from ltfast.data.crops import CentreCrop
from ltfast.data.datasets import ArrayDataset
from ltfast.data.steps import Augmentation, Pixels, Step

Policy = Literal[
    "none", "basic", "cifar", "cifar_autoaugment", "simclr", "resized_crop", "imagenet", "mae", "randaugment"
]


def train_transform(
    bundle: DataBundle, policy: Policy, image_size: int | None = None, channels: int | None = None
) -> Augmentation:
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
            - "resized_crop": a random resized crop (scale 0.08 to 1) and a flip, as in LIFT.
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
    flip = Sometimes(0.5, Flip())
    if policy == "none":
        return eval_transform(bundle, image_size, channels)
    if policy == "basic":
        return Augmentation([convert, *fit, crop, finish])
    if policy == "cifar":
        return Augmentation([convert, *fit, crop, flip, finish])
    if policy == "cifar_autoaugment":
        return Augmentation([convert, *fit, crop, flip, _autoaugment, Cutout(), finish])
    if policy == "simclr":
        jitter, grey = Sometimes(0.8, ColorJitter(0.4, hue=0.1)), Sometimes(0.2, Grey())
        return Augmentation([convert, resized_crop, flip, jitter, grey, finish])
    if policy == "resized_crop":
        return Augmentation([convert, resized_crop, flip, finish])
    if policy == "imagenet":
        return Augmentation([convert, resized_crop, flip, ColorJitter(0.4), finish])
    if policy == "mae":
        gentle_crop = RandomResizedCropAndInterpolation(size, scale=(0.2, 1.0), interpolation="bicubic")
        return Augmentation([convert, gentle_crop, flip, finish])
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
        steps = augment.transforms
        (place,) = (place for place, step in enumerate(steps) if isinstance(step, RandAugment))
        for op in steps[place].ops:
            if op.aug_fn is posterize:
                op.aug_fn = _posterize
        return Augmentation([convert, *steps[: place + 1], ErasedTensor(steps[place + 1 :], finish)])
    raise ValueError(f"policy: expected one of {', '.join(get_args(Policy))}, got {policy!r}")


def eval_transform(bundle: DataBundle, image_size: int | None = None, channels: int | None = None) -> Augmentation:
    """The evaluation transform, which is deterministic.

    Images in arrays are resized if their size differs. Images in files are resized so that the short side is 256 / 224
    of the output size, and then cropped at the centre. Both are then normalised. For arguments, return value and errors
    see `train_transform`.
    """
    size, convert, mean, std = output_format(bundle, image_size, channels)
    return Augmentation([convert, *fit_steps(bundle, size), NormalizedTensor(mean, std)])


def output_format(
    bundle: DataBundle, image_size: int | None, channels: int | None
) -> tuple[int, "Convert", tuple[float, ...], tuple[float, ...]]:
    """The size of the output, the conversion to its channels, and its mean and std."""
    size = bundle.image_size if image_size is None else image_size
    if size < 1:
        raise ValueError(f"image_size: expected at least 1 pixel, got {size}")
    channels = bundle.channels if channels is None else channels
    if channels not in (bundle.channels, 3):
        raise ValueError(f"channels: expected one of {sorted({bundle.channels, 3})}, got {channels}")
    copies = channels // bundle.channels
    return size, Convert(channels), bundle.mean * copies, bundle.std * copies


def fit_steps(bundle: DataBundle, size: int) -> list[Any]:
    if not isinstance(bundle.train, ArrayDataset):
        return [CentreCrop(size * 256 // 224, size)]
    return [] if size == bundle.image_size else [Resize((size, size))]


class Convert(Step):
    """Converts to a number of channels, 1 or 3."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.convert("RGB" if self.channels == 3 else "L")

    def batched(self) -> nn.Module:
        return device_steps.Channels(self.channels)


class Sometimes(Step):
    """Applies a step with probability `p`."""

    def __init__(self, p: float, step: Step) -> None:
        self.p = p
        self.step = step
        self.idle = step.idle

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.step(image) if random.random() < self.p else image

    def draw(self, pixels: Pixels) -> Sequence[float]:
        return self.step.draw(pixels) if random.random() < self.p else self.idle

    def batched(self) -> nn.Module:
        return self.step.batched()


class PaddedCrop(Step):
    """A random crop of (size, size) after black padding of size // 8, equivalent to torchvision's RandomCrop."""

    idle = (0, 0)

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        x, y = self._corner()
        return image.crop((x, y, x + self.size, y + self.size))  # black outside the image

    def draw(self, pixels: Pixels) -> Sequence[float]:
        return self._corner()

    def batched(self) -> nn.Module:
        return device_steps.Crop(self.size, self.size // 8)

    def _corner(self) -> Sequence[int]:
        padding = self.size // 8
        return [random.randint(-padding, padding) for _ in range(2)]


class Flip(Step):
    """Mirrors an image horizontally."""

    idle = (0,)

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image)

    def draw(self, pixels: Pixels) -> Sequence[float]:
        return (1,)

    def batched(self) -> nn.Module:
        return device_steps.Flip()


class ColorJitter(Step):
    """torchvision's ColorJitter: changes brightness, contrast and saturation by up to `strength` and the hue by up to
    `hue` turns, in random order."""

    def __init__(self, strength: float, hue: float = 0.0) -> None:
        self.strength = strength
        self.hue = hue
        self.idle = (*_NO_BLENDS, 0, *_NO_BLENDS) if hue else _NO_BLENDS

    def __call__(self, image: Image.Image) -> Image.Image:
        for kind, amount in self._steps():
            image = _JITTERS[kind](image, amount)
        return image

    def draw(self, pixels: Pixels) -> Sequence[float]:
        steps = self._steps()
        (turn,) = (place for place, (kind, _) in enumerate(steps) if kind == _HUE)
        before, after = ([number for step in part for number in step] for part in (steps[:turn], steps[turn + 1 :]))
        if not self.hue:
            return before + after
        return [*before, *_NO_BLENDS[len(before) :], _hue_shift(steps[turn][1]), *after, *_NO_BLENDS[len(after) :]]

    def batched(self) -> nn.Module:
        return device_steps.Jitter(hue=self.hue > 0)

    def _steps(self) -> list[tuple[int, float]]:
        """Pairs of a place in `_JITTERS` and an amount."""
        ranges = [(1 - self.strength, 1 + self.strength)] * 3 + [(-self.hue, self.hue)]
        return [(kind, random.uniform(*ranges[kind])) for kind in random.sample(range(len(_JITTERS)), len(_JITTERS))]


def _brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    """Pillow's ImageEnhance.Contrast with a faster mean: Pillow's takes three times as long."""
    mean = int(np.asarray(image.convert("L")).mean() + 0.5)
    return Image.blend(Image.new(image.mode, image.size, (mean,) * len(image.getbands())), image, factor)


def _saturation(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    shift = _hue_shift(turns)
    if shift == 0 or image.mode == "L":
        return image
    pixels = np.array(image.convert("HSV"))
    pixels[..., 0] += np.uint8(shift)  # a turn is 256, so uint8 wraps around
    return Image.frombytes("HSV", image.size, pixels.tobytes()).convert("RGB")


def _hue_shift(turns: float) -> int:
    """The change of an 8-bit hue, modulo 256."""
    return int(turns * 255) % 256  # torchvision's rounding


_JITTERS = (_brightness, _contrast, _saturation, _shift_hue)
_HUE = 3
_NO_BLENDS = (0, 1) * 3  # brightness unchanged, three times


def _posterize(image: Image.Image, bits: int, **unused: Any) -> Image.Image:
    """timm's posterize, extended to 0 bits, which timm's policy uses and Pillow 13 does not accept."""
    return posterize(image, bits) if bits else Image.new(image.mode, image.size)


class Grey(Step):
    """Makes an image grey, with as many channels as before."""

    idle = (0,)

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.convert("L").convert(image.mode)

    def draw(self, pixels: Pixels) -> Sequence[float]:
        return (1,)

    def batched(self) -> nn.Module:
        return device_steps.Grey()


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


class Cutout(Step):
    """Draws a black square of half the image size around a random pixel, clipped at the border (DeVries and Taylor,
    "Improved Regularization of Convolutional Neural Networks with Cutout", 2017). torchvision's erasing never crosses
    the border."""

    idle = (0, 0, 0, 0)

    def __call__(self, image: Image.Image) -> Image.Image:
        image = image.copy()
        width, height = image.size
        left, top, right, bottom = self._square(width, height)
        image.paste(0, (max(left, 0), max(top, 0), min(right, width), min(bottom, height)))
        return image

    def draw(self, pixels: Pixels) -> Sequence[float]:
        height, width, _ = pixels.shape
        return self._square(width, height)

    def batched(self) -> nn.Module:
        return device_steps.Cutout()

    def _square(self, width: int, height: int) -> tuple[int, int, int, int]:
        half = width // 4
        x, y = random.randrange(width), random.randrange(height)
        return x - half, y - half, x + half, y + half


class NormalizedTensor(Step):
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

    def batched(self) -> nn.Module:
        return device_steps.Normalize(self.scale, self.shift)


class ErasedTensor(Step):
    """timm's steps to a normalised tensor, and its random erasing with normal noise.

    For a device, the noise is drawn here too, and rounded to a 32nd of its standard deviation, about two grey levels:
    the numbers would be four times as large, and a device's generator would give others.
    """

    idle = (0, 0, 0, 0)

    def __init__(self, steps: Sequence[Any], finish: NormalizedTensor) -> None:
        """
        Args:
            steps: timm's, one of which is a RandomErasing.
            finish: has the mean and standard deviation.
        """
        self.steps, self.finish = steps, finish
        (self.erasing,) = (step for step in steps if isinstance(step, RandomErasing))

    def __call__(self, image: Image.Image) -> Tensor:
        result: Any = image
        for step in self.steps:
            result = step(result)
        return result

    def draw(self, pixels: Pixels) -> Sequence[float]:
        height, width, channels = pixels.shape
        erased = _Erased((channels, height, width))
        self.erasing(erased)
        if erased.noise is None:
            return self.idle
        levels = erased.noise.mul(device_steps.NOISE_LEVELS).add_(128).round_().clamp_(0, 255)
        pixels[erased.rows, erased.columns] = levels.byte().permute(1, 2, 0).numpy()
        return erased.columns.start, erased.rows.start, erased.columns.stop, erased.rows.stop

    def batched(self) -> nn.Module:
        return device_steps.NormalizeErased(self.finish.scale, self.finish.shift)


class _Erased:
    """Takes the place of the tensor from which timm's RandomErasing erases a rectangle, and keeps what it writes."""

    dtype = torch.float32

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.noise: Tensor | None = None

    def size(self) -> tuple[int, int, int]:
        return self.shape

    def __setitem__(self, place: tuple[slice, slice, slice], noise: Tensor) -> None:
        _, self.rows, self.columns = place
        self.noise = noise
