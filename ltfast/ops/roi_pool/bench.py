"""`patch_roi_pool`, forward and backward, beside torchvision's `roi_align` and a mean."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torchvision
from torch import Tensor

from ltfast.ops.core.bench import Case, Step, Work, compilers
from ltfast.ops.roi_pool import patch_roi_pool, reference
from ltfast.ops.roi_pool.settings import RoiPoolSettings

SIZES = {"small": (64, 512), "imagenet-lt": (64, 2048), "large": (512, 2048)}  # images and channels
SIDE, STRIDE, BOXES, PATCH = 7, 32, 5, 64  # patches of 64 pixels of an image of 224
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def by_torchvision(features: Tensor, boxes: Tensor) -> Tensor:
    """In float32, as torchvision has it under autocast: it knows no bfloat16."""
    pooled = torchvision.ops.roi_align(features.float(), list(boxes), 2, spatial_scale=1 / STRIDE)
    return pooled.mean((2, 3)).view(*boxes.shape[:2], -1).to(features.dtype)


def plain(features: Tensor, boxes: Tensor) -> Tensor:
    return reference.roi_pool(features, boxes, RoiPoolSettings(1 / STRIDE, 2, -1, False))


def case(device: torch.device, shape: str, images: int, channels: int, layout: str, dtype: torch.dtype) -> Case:
    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        features = torch.randn(images, channels, SIDE, SIDE, device=device).to(dtype, memory_format=LAYOUTS[layout])
        corner = torch.rand(images, BOXES, 2, device=device) * (SIDE * STRIDE - PATCH)
        incoming = torch.randn(images, BOXES, channels, device=device).to(dtype)
        return features.requires_grad_(), torch.cat((corner, corner + PATCH), 2), incoming

    def start(make: Callable[[], Callable[..., Tensor]]) -> Step:
        pool = make()
        return lambda inputs: torch.autograd.grad(pool(*inputs[:2]), inputs[0], inputs[2])

    makes: dict[str, Callable[[], Callable[..., Tensor]]] = {
        "ltfast": lambda: partial(patch_roi_pool, spatial_scale=1 / STRIDE),
        "torchvision": lambda: by_torchvision,
        **compilers(plain, device),
    }
    return Case(
        "patch_roi_pool",
        shape,
        f"{images} x {channels} x {SIDE} x {SIDE}, {BOXES} boxes, {layout}",
        dtype,
        Work(
            bytes=2 * dtype.itemsize * images * channels * (SIDE**2 + BOXES),
            # per image (boxes x pixels) @ (pixels x channels), and the transpose
            flops=2 * 2 * images * BOXES * SIDE**2 * channels,
        ),
        inputs,
        {name: partial(start, make) for name, make in makes.items()},
    )


def cases(device: torch.device) -> Iterator[Case]:
    for shape, size in SIZES.items():
        yield case(device, shape, *size, "contiguous", torch.float32)
    yield case(device, "imagenet-lt", *SIZES["imagenet-lt"], "channels_last", torch.float32)
    yield case(device, "imagenet-lt", *SIZES["imagenet-lt"], "channels_last", torch.bfloat16)
