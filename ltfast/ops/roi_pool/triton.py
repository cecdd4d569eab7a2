"""The GPU kernels: the weights of the boxes stay in registers, and a block of channels is read or written once."""

import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.core.launch import chip_of
from ltfast.ops.roi_pool.launch import TileLaunch, tile_launch
from ltfast.ops.roi_pool.settings import RoiPoolSettings


@triton.jit
def _divide(x, y):
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)  # `/` of float32 would not be rounded correctly


@triton.jit
def _position(i, start, extent, steps, samples):
    return start + _divide((tl.where(extent < 0, samples - 1 - i, i) + 0.5) * extent, steps)


@triton.jit
def _is_below(i, bound, size, start, extent, steps, samples):
    at = _position(i, start, extent, steps, samples)
    return tl.where(bound == size, at <= bound, at < bound)


@triton.jit
def _count_below(bound, size, start, least, extent, steps, samples):
    """How many of a bin's samples lie below the bound (at ``size``, the last that counts: or on it)."""
    guess = tl.ceil(_divide((bound - least) * steps, tl.abs(extent)) - 0.5)  # off by one at most
    count = tl.where(guess > 0, tl.minimum(guess, samples), 0)  # NaN: 0
    fewer = (count > 0) & ~_is_below(count - 1, bound, size, start, extent, steps, samples)
    more = (count < samples) & _is_below(count, bound, size, start, extent, steps, samples)
    return tl.where(fewer, count - 1, tl.where(more, count + 1, count))


@triton.jit
def _middle(first, end, start, extent, steps, samples):
    """The mean of the samples [first, end): they are equally spaced, so it is that of the first and the last."""
    first_at = _position(first, start, extent, steps, samples)
    last_at = _position(end - 1, start, extent, steps, samples)
    return (first_at + last_at) / 2


@triton.jit
def _axis_weights(low, high, first, size, output_size, sampling_ratio, ALIGNED: tl.constexpr, COUNT: tl.constexpr):
    """The weights (boxes, COUNT) of the pixels of an axis from ``first`` on: csrc/ops/roi_pool.cpp in one step."""
    pixel = (first + tl.arange(0, COUNT))[None, :].to(low.dtype)
    edge = tl.cast(size, low.dtype)
    extent = high - low
    if not ALIGNED:
        extent = tl.where(extent > 1, extent, 1.0)
    bins = _divide(extent, tl.zeros_like(extent) + output_size)
    samples = tl.ceil(bins)
    if sampling_ratio > 0:
        samples = tl.zeros_like(bins) + sampling_ratio
    valid = (samples > 0) & (tl.abs(bins) < float("inf"))
    bins, samples = tl.where(valid, bins, 1.0), tl.where(valid, samples, 1.0)
    # Samples are extent / steps apart. In bins of so many pixels a product with the extent may overflow.
    wide = tl.abs(bins) > (1 << 52 if bins.dtype == tl.float64 else 1 << 23)
    extent, steps = tl.where(wide, _divide(bins, samples), bins), tl.where(wide, 1.0, samples)
    total = tl.zeros_like(low) + tl.zeros_like(pixel)
    for b in range(output_size):
        start = low + b * bins
        least = tl.where(bins < 0, start + bins, start)
        here = _count_below(pixel, edge, start, least, extent, steps, samples)
        before = _count_below(pixel - 1, edge, start, least, extent, steps, samples)
        after = _count_below(pixel + 1, edge, start, least, extent, steps, samples)
        rise = _middle(before, here, start, extent, steps, samples) - (pixel - 1)
        fall = pixel + 1 - _middle(here, after, start, extent, steps, samples)
        rise = tl.where(pixel == 0, 1.0, tl.minimum(tl.maximum(rise, 0.0), 1.0))
        fall = tl.where(pixel == edge - 1, 1.0, tl.minimum(tl.maximum(fall, 0.0), 1.0))
        total += tl.where(here > before, (here - before) * rise, 0.0) + tl.where(
            after > here, (after - here) * fall, 0.0
        )
    return tl.where(valid & (pixel < edge), _divide(total, samples * output_size), 0.0)


@triton.jit
def _weights(boxes, image, first_box, number, row, column, height, width, spatial_scale, output_size, sampling_ratio,
             ALIGNED: tl.constexpr, BOXES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """The weights (BOXES, ROWS * COLUMNS) of a tile of pixels; 0 outside the image and for missing boxes."""
    box = first_box + tl.arange(0, BOXES)[:, None]
    at = boxes + (image * number + box) * 4
    there = box < number
    x1 = tl.load(at, mask=there, other=0.0)
    y1 = tl.load(at + 1, mask=there, other=0.0)
    x2 = tl.load(at + 2, mask=there, other=0.0)
    y2 = tl.load(at + 3, mask=there, other=0.0)
    scale = (tl.full((), 1.0, tl.float64) * spatial_scale).to(x1.dtype)
    shift = 0.5 if ALIGNED else 0.0
    y = _axis_weights(y1 * scale - shift, y2 * scale - shift, row, height, output_size, sampling_ratio, ALIGNED, ROWS)
    x = _axis_weights(
        x1 * scale - shift, x2 * scale - shift, column, width, output_size, sampling_ratio, ALIGNED, COLUMNS
    )
    x = tl.where(there, x, 0.0)
    nothing = (x1 - x1) + (x2 - x2) + (y1 - y1) + (y2 - y2)  # 0, or NaN where one of them is not finite
    return tl.reshape((y + nothing)[:, :, None] * x[:, None, :], (BOXES, ROWS * COLUMNS))


@triton.jit
def _pixels(row, column, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The offsets of a tile's pixels, and which of them are in the image."""
    tile = tl.arange(0, ROWS * COLUMNS)
    y, x = row + tile // COLUMNS, column + tile % COLUMNS
    return y * width + x, (y < height) & (x < width)


@triton.jit
def _forward_kernel(features, boxes, pooled, channels, height, width, number, channel_stride, pixel_stride,
                    spatial_scale: "fp64", output_size, sampling_ratio, ALIGNED: tl.constexpr,  # noqa: F821
                    BOXES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                    CHANNELS: tl.constexpr):  # fmt: skip
    """The means of a block of boxes and channels.

    features (images, channels, height, width), pixels ``pixel_stride`` and channels ``channel_stride`` apart; boxes
    (images, number, 4): x1, y1, x2, y2; pooled (images, number, channels), contiguous.
    """
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    first_box = tl.program_id(2) * BOXES
    features += image * channels * height * width
    total = tl.zeros((BOXES, CHANNELS), boxes.dtype.element_ty)
    for row in range(0, height, ROWS):
        for column in range(0, width, COLUMNS):
            w = _weights(boxes, image, first_box, number, row, column, height, width, spatial_scale, output_size,
                         sampling_ratio, ALIGNED, BOXES, ROWS, COLUMNS)  # fmt: skip
            pixel, inside = _pixels(row, column, height, width, ROWS, COLUMNS)
            at = features + pixel[:, None] * pixel_stride + channel[None, :] * channel_stride
            f = tl.load(at, mask=inside[:, None] & (channel < channels)[None, :], other=0.0)
            total = tl.dot(w, f.to(w.dtype), total, input_precision="ieee", out_dtype=w.dtype)
    box = first_box + tl.arange(0, BOXES)
    out = pooled + ((image * number + box) * channels)[:, None] + channel[None, :]
    tl.store(out, total, mask=(box < number)[:, None] & (channel < channels)[None, :])


@triton.jit
def _backward_kernel(gradient, boxes, grad_pooled, channels, height, width, number, channel_stride, pixel_stride,
                     spatial_scale: "fp64", output_size, sampling_ratio, ALIGNED: tl.constexpr,  # noqa: F821
                     BOXES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                     CHANNELS: tl.constexpr):  # fmt: skip
    """The gradient of a tile of pixels and a block of channels.

    gradient (images, channels, height, width), pixels ``pixel_stride`` and channels ``channel_stride`` apart; boxes
    (images, number, 4): x1, y1, x2, y2; grad_pooled (images, number, channels), contiguous.
    """
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    across = tl.cdiv(width, COLUMNS)
    row = tl.program_id(2) // across * ROWS
    column = tl.program_id(2) % across * COLUMNS
    total = tl.zeros((ROWS * COLUMNS, CHANNELS), boxes.dtype.element_ty)
    for first_box in range(0, number, BOXES):
        w = _weights(boxes, image, first_box, number, row, column, height, width, spatial_scale, output_size,
                     sampling_ratio, ALIGNED, BOXES, ROWS, COLUMNS)  # fmt: skip
        box = first_box + tl.arange(0, BOXES)
        at = grad_pooled + ((image * number + box) * channels)[:, None] + channel[None, :]
        g = tl.load(at, mask=(box < number)[:, None] & (channel < channels)[None, :], other=0.0)
        total = tl.dot(tl.trans(w), g.to(w.dtype), total, input_precision="ieee", out_dtype=w.dtype)
    pixel, inside = _pixels(row, column, height, width, ROWS, COLUMNS)
    out = gradient + image * channels * height * width + pixel[:, None] * pixel_stride
    tl.store(out + channel[None, :] * channel_stride, total, mask=inside[:, None] & (channel < channels)[None, :])


def roi_pool(features: Tensor, boxes: Tensor, pooled: Tensor, channels_last: bool, settings: RoiPoolSettings) -> None:
    launch = tile_launch(features.shape[3], features.dtype, chip_of(features.device))
    blocks = triton.cdiv(boxes.shape[1], launch.boxes)
    if blocks:
        _launch(_forward_kernel, blocks, launch, features, boxes, pooled, channels_last, settings)


def roi_pool_backward(
    gradient: Tensor, boxes: Tensor, grad_pooled: Tensor, channels_last: bool, settings: RoiPoolSettings
) -> None:
    height, width = gradient.shape[2:]
    launch = tile_launch(width, gradient.dtype, chip_of(gradient.device))
    tiles = triton.cdiv(height, launch.rows) * triton.cdiv(width, launch.columns)
    _launch(_backward_kernel, tiles, launch, gradient, boxes, grad_pooled, channels_last, settings)


def _launch(
    kernel, blocks: int, launch: TileLaunch, features: Tensor, boxes: Tensor, pooled: Tensor, channels_last: bool,
    settings: RoiPoolSettings,
) -> None:  # fmt: skip
    images, channels, height, width = features.shape
    channel_stride, pixel_stride = (1, channels) if channels_last else (height * width, 1)
    kernel[(images, triton.cdiv(channels, launch.channels), blocks)](
        features, boxes, pooled, channels, height, width, boxes.shape[1], channel_stride, pixel_stride, *settings,
        **launch.options,
    )  # fmt: skip
