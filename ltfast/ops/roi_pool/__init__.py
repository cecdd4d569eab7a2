r"""Pooling of patches: the mean of ROIAlign (He et al., "Mask R-CNN", ICCV 2017) over each box.

Bilinear sampling, its clamping to the image and the rule for samples outside are separable, so the mean over the bins
and samples of a box is a weighted sum of pixels whose weights are an outer product,

.. math::

    \mathrm{out}_{lc} = \sum_{hw} y_{lh}\, x_{lw}\, F_{chw}, \qquad
    \frac{\partial L}{\partial F_{chw}} = \sum_l y_{lh}\, x_{lw} \frac{\partial L}{\partial \mathrm{out}_{lc}}

For an image this is the product of an L x HW and an HW x C matrix, and the backward pass is the product with the
transpose. No value is scattered, so the result is bit-for-bit the same every time. The kernels compute the sum over the
samples of a box in closed form: the samples of a bin between two pixels are equally spaced, so their mean is that of
the first and the last. The cost depends neither on the box nor on the number of its samples.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ltfast.ops.core import checks
from ltfast.ops.core.dispatch import Kernels, Op
from ltfast.ops.core.settings import schema_of
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.roi_pool import reference
from ltfast.ops.roi_pool.settings import RoiPoolSettings

__all__ = ["patch_roi_pool"]


def patch_roi_pool(
    features: Tensor,
    boxes: Tensor,
    *,
    spatial_scale: float = 1.0,
    output_size: int = 2,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """``torchvision.ops.roi_align(features, list(boxes), ...).mean((2, 3))``, with equally many boxes in every image.

    Both passes are deterministic. The result is twice differentiable in the features; the boxes get no gradient.

    Args:
        features: (N, C, H, W), float32, float64, bfloat16 or float16. Any strides; contiguous and channels_last are
            read in place, and the gradient has their memory format.
        boxes: (N, L, 4), any float dtype: x1, y1, x2, y2 in pixels of the image of the features. They may
            leave the image, and L may be 0. Arithmetic on them is in float32, or float64 for float64 features.
        spatial_scale: pixels of the features for one pixel of the boxes, positive: 1/32 for a network of stride 32.
        output_size: bins on each side of a box, 1 or more.
        sampling_ratio: samples on each side of a bin; -1 (or 0) takes as many as the bin has pixels, rounded up. With
            ``aligned``, a box without area or with x2 < x1 or y2 < y1 has no samples, and its output is 0.
        aligned: shift boxes by half a pixel, and let them be smaller than one.

    Returns:
        (N, L, C) in the features' dtype. A box with a coordinate that is not finite gives NaN in its own row, and in
        the gradient of its image. A feature that is not finite can reach every box of its image, in its channel.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """
    _check(features, boxes, spatial_scale, output_size, sampling_ratio)
    settings = RoiPoolSettings(float(spatial_scale), output_size, sampling_ratio, aligned)
    if PATCH_ROI_POOL.choose(features) == "reference":
        return reference.roi_pool(features, boxes, settings)
    return roi_pool_op(features, boxes, *settings)


def _check(features: Tensor, boxes: Tensor, spatial_scale: float, output_size: int, sampling_ratio: int) -> None:
    expected = {"features": "(batch, channels, height, width)", "boxes": "(batch, boxes, 4)"}
    for name, tensor, rank in (("features", features, 4), ("boxes", boxes, 3)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}: expected a tensor")
        if tensor.dim() != rank:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {expected[name]}")
        if tensor.dtype not in checks.FLOATS:
            raise TypeError(f"{name} has dtype {tensor.dtype}: expected float32, float64, bfloat16 or float16")
    if 0 in features.shape:
        raise ValueError(f"features has shape {tuple(features.shape)}: expected {expected['features']}, none of them 0")
    if boxes.shape[0] != features.shape[0] or boxes.shape[2] != 4:
        raise ValueError(f"boxes has shape {tuple(boxes.shape)}: expected ({features.shape[0]}, boxes, 4)")
    if boxes.device != features.device:
        raise ValueError(f"boxes is on {boxes.device}: expected the device of the features, {features.device}")
    if boxes.requires_grad:
        raise ValueError("boxes requires a gradient: the pooling is differentiated in the features only")
    checks.check_positive("spatial_scale", spatial_scale)
    for name, value, least in (("output_size", output_size, 1), ("sampling_ratio", sampling_ratio, -1)):
        if not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}: expected an integer")
        if value < least:
            raise ValueError(f"{name} is {value}: expected {least} or more")


def _is_channels_last(features: Tensor) -> bool:
    return features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()


def _empty_features(pooled: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    images, _, channels = pooled.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(
        (images, channels, height, width), dtype=pooled.dtype, device=pooled.device, memory_format=layout
    )


def _native() -> ModuleType:
    from ltfast.ops.roi_pool import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.roi_pool import triton

    return triton


PATCH_ROI_POOL = Op("patch_roi_pool", reference.roi_pool, Kernels(_native, _triton))


@PATCH_ROI_POOL.guarded
def _pool(features: Tensor, boxes: Tensor, *options: Any) -> Tensor:
    """``options`` are the settings; in a second derivative, the backend of the forward pass follows."""
    settings, backend = RoiPoolSettings(*options[:4]), options[4] if len(options) > 4 else None
    channels_last = _is_channels_last(features)
    if not channels_last:
        features = features.contiguous()
    boxes = boxes.to(accumulator(features.dtype)).contiguous()
    pooled = features.new_empty(*boxes.shape[:2], features.shape[1])
    backend = backend or PATCH_ROI_POOL.resolve(features.device)
    PATCH_ROI_POOL.kernels.of(backend, features.device).roi_pool(features, boxes, pooled, channels_last, settings)
    return pooled


_SETTINGS = schema_of(RoiPoolSettings)
roi_pool_op = torch.library.custom_op(
    "ltfast::roi_pool",
    _pool,
    mutates_args=(),
    schema=f"(Tensor features, Tensor boxes, {_SETTINGS}, str? backend=None) -> Tensor",
)


@roi_pool_op.register_fake
def _(features: Tensor, boxes: Tensor, *_: Any) -> Tensor:
    return features.new_empty(*boxes.shape[:2], features.shape[1])


@PATCH_ROI_POOL.guarded
def _pool_backward(
    grad_pooled: Tensor, boxes: Tensor, height: int, width: int, channels_last: bool, backend: str, *settings: Any
) -> Tensor:
    """The gradient in the features: the product with the transposed weights."""
    gradient = _empty_features(grad_pooled, height, width, channels_last)
    boxes = boxes.to(accumulator(gradient.dtype)).contiguous()
    arguments = (gradient, boxes, grad_pooled.contiguous(), channels_last, RoiPoolSettings(*settings))
    PATCH_ROI_POOL.kernels.of(backend, gradient.device).roi_pool_backward(*arguments)
    return gradient


roi_pool_backward_op = torch.library.custom_op(
    "ltfast::roi_pool_backward",
    _pool_backward,
    mutates_args=(),
    schema="(Tensor grad_pooled, Tensor boxes, SymInt height, SymInt width, bool channels_last, str backend, "
    f"{_SETTINGS}) -> Tensor",
)


@roi_pool_backward_op.register_fake
def _(grad_pooled: Tensor, boxes: Tensor, height: int, width: int, channels_last: bool, *_: Any) -> Tensor:
    return _empty_features(grad_pooled, height, width, channels_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, *ctx.settings, backend = inputs
    ctx.shape = *features.shape[2:], _is_channels_last(features)
    ctx.backend = backend or PATCH_ROI_POOL.resolve(features.device)
    ctx.save_for_backward(boxes)


def _backward(ctx: Any, grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
    (boxes,) = ctx.saved_tensors
    gradient = roi_pool_backward_op(grad_pooled, boxes, *ctx.shape, ctx.backend, *ctx.settings)
    return gradient, *[None] * 6


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, boxes, _, _, _, ctx.backend, *ctx.settings = inputs
    ctx.save_for_backward(boxes)


def _backward_backward(ctx: Any, grad_gradient: Tensor) -> tuple[Tensor | None, ...]:
    (boxes,) = ctx.saved_tensors
    return roi_pool_op(grad_gradient, boxes, *ctx.settings, ctx.backend), *[None] * 9


roi_pool_op.register_autograd(_backward, setup_context=_setup)
roi_pool_backward_op.register_autograd(_backward_backward, setup_context=_setup_backward)
