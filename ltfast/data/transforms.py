"""From an image to a normalised tensor: torchvision's and timm's transforms under the literature's names."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import v2

from ltfast.data.bundle import DataBundle
from ltfast.data.datasets import ArrayDataset

Policy = Literal["none", "basic", "cifar", "cifar_autoaugment", "simclr", "imagenet", "randaugment"]
Transform = Callable[[Image.Image], Tensor]


def train_transform(
    bundle: DataBundle, policy: Policy, image_size: int | None = None, channels: int | None = None
) -> Transform:
    """The augmentation that a training image goes through.

    Args:
        bundle: whose images, mean and std these are.
        policy: one of

            - "none": as `eval_transform`.
            - "basic": a random crop after padding by an eighth of the size. No flip: good for digits and letters.
            - "cifar": "basic", which at 32 pixels pads 4, and a horizontal flip.
            - "cifar_autoaugment": "cifar", AutoAugment's CIFAR-10 policy and Cutout of half the size (16 of 32 pixels),
              as in PaCo, BCL and ProCo.
            - "simclr": a random resized crop (scale 0.2 to 1), a flip, colour jitter 0.4, 0.4, 0.4, 0.1 with
              probability 0.8, grey with probability 0.2.
            - "imagenet": a random resized crop (scale 0.08 to 1), a flip, colour jitter 0.4, 0.4, 0.4, as
              ImageNet-LT's authors.
            - "randaugment": timm's rand-m9-mstd0.5-inc1 and random erasing 0.25, as masked autoencoders' fine-tuning.

        image_size: height and width of the output, in pixels; None means the bundle's.
        channels: of the output; None means the bundle's. Grey images can be asked for with 3 channels.

    Returns:
        A callable from a PIL image to a (channels, image_size, image_size) float32 tensor, normalised with the bundle's
        mean and std. It draws from the global generators of torch, numpy and `random`.

    Raises:
        ValueError: the policy is unknown, or a size or a number of channels out of its range.
    """
    size, convert, mean, std = _output(bundle, image_size, channels)
    fit = _fit(bundle, size)
    finish = _NormalizedTensor(mean, std)
    crop = v2.RandomCrop(size, padding=size // 8)
    flip = v2.RandomHorizontalFlip()
    if policy == "none":
        return eval_transform(bundle, image_size, channels)
    if policy == "basic":
        return v2.Compose([convert, *fit, crop, finish])
    if policy == "cifar":
        return v2.Compose([convert, *fit, crop, flip, finish])
    if policy == "cifar_autoaugment":
        # grey fill, as the authors' AutoAugment
        augment = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=[128] * len(mean))
        return v2.Compose([convert, *fit, crop, flip, augment, _Cutout(), finish])
    if policy == "simclr":
        jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
        crop = v2.RandomResizedCrop(size, scale=(0.2, 1.0))
        return v2.Compose([convert, crop, flip, jitter, v2.RandomGrayscale(0.2), finish])
    if policy == "imagenet":
        return v2.Compose([convert, v2.RandomResizedCrop(size), flip, v2.ColorJitter(0.4, 0.4, 0.4), finish])
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
        return v2.Compose([convert, augment])
    raise ValueError(f"policy: expected one of {', '.join(get_args(Policy))}, got {policy!r}")


def eval_transform(bundle: DataBundle, image_size: int | None = None, channels: int | None = None) -> Transform:
    """What a test image goes through: images in arrays are resized if need be, images in files have their short side
    resized to 256 / 224 of the size and the centre cropped; then they are normalised.

    Args, returns, raises: as `train_transform`; nothing here is random.
    """
    size, convert, mean, std = _output(bundle, image_size, channels)
    return v2.Compose([convert, *_fit(bundle, size), _NormalizedTensor(mean, std)])


def _output(
    bundle: DataBundle, image_size: int | None, channels: int | None
) -> tuple[int, v2.Transform, tuple[float, ...], tuple[float, ...]]:
    """The output's size, the conversion to its channels, and its mean and std."""
    size = bundle.image_size if image_size is None else image_size
    if size < 1:
        raise ValueError(f"image_size: expected at least 1 pixel, got {size}")
    channels = bundle.channels if channels is None else channels
    if channels not in (bundle.channels, 3):
        raise ValueError(f"channels: expected one of {sorted({bundle.channels, 3})}, got {channels}")
    convert = v2.RGB() if channels == 3 else v2.Grayscale(1)
    copies = channels // bundle.channels
    return size, convert, bundle.mean * copies, bundle.std * copies


def _fit(bundle: DataBundle, size: int) -> list[v2.Transform]:
    if not isinstance(bundle.train, ArrayDataset):
        return [v2.Resize(size * 256 // 224), v2.CenterCrop(size)]
    return [] if size == bundle.image_size else [v2.Resize((size, size))]


class _Cutout:
    """A black square of half the size around a random pixel, cut off at the border (DeVries and Taylor, "Improved
    Regularization of Convolutional Neural Networks with Cutout", 2017). torchvision erases inside the image only."""

    def __call__(self, image: Image.Image) -> Image.Image:
        image = image.copy()
        width, height = image.size
        half = width // 4
        x, y = int(torch.randint(width, ())), int(torch.randint(height, ()))
        image.paste(0, (max(x - half, 0), max(y - half, 0), min(x + half, width), min(y + half, height)))
        return image


class _NormalizedTensor:
    """torchvision's PILToTensor, ToDtype and Normalize in one step: a quarter of their time on a small image."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        mean_, std_ = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
        self.scale = (1 / (255 * std_)).float()
        self.shift = (-mean_ / std_).float()

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)
        return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(self.scale).add_(self.shift)
