"""Pillow's bilinear resizing as tensor operations, to the last bit, for images whose size is known only when they come.

Pillow resizes along one axis and then along the other. Each pass is a weighted sum of 8-bit pixels with weights of 22
fractional bits, rounded to 8 bits. A pass is a matrix product here. In float64 all its sums are exact, in any order.

Source: `precompute_coeffs` and `normalize_coeffs_8bpc` in src/libImaging/Resample.c of Pillow. The order of the passes
in Pillow 13 was found by comparison.
"""

import PIL
import torch
from torch import Tensor, nn

_UNIT = 2.0**22  # a weight of 1
# Pillow 13 begins with the rows of an image whose height shrinks much more than its width
_MAY_BEGIN_WITH_HEIGHT = int(PIL.__version__.partition(".")[0]) >= 13


class PixelCrop(nn.Module):
    """`ltfast.data.crops.CentreCrop` for batches of pixels (B, C, H, W) float64, in 0..255; the result is
    (B, C, size, size)."""

    def __init__(self, short: int, size: int) -> None:
        super().__init__()
        self.short, self.size = short, size

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = (_positions(pixels, axis) for axis in (2, 3))
        shortest = torch.minimum(height.max(), width.max()) + 1
        longest = torch.maximum(height.max(), width.max()) + 1
        within = longest > 4 * shortest  # only the part inside the crop is resized
        (rows, new_height), (columns, new_width) = (self._weights(side, shortest, within) for side in (height, width))
        return _resized(pixels, rows, columns, _begins_with_height(height, new_height, width, new_width))

    def _weights(self, positions: Tensor, shortest: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
        side = positions.max() + 1
        whole = (self.short * side / shortest).floor()
        first = ((whole - self.size) / 2).round()
        start = torch.where(within, first * side / whole, 0.0)
        stop = torch.where(within, (first + self.size) * side / whole, side)
        size = torch.where(within, float(self.size), whole)
        outputs = _numbers(self.size, positions) + torch.where(within, 0.0, first)
        return _weights(positions, start, stop, size, outputs), size


class PixelResize(nn.Module):
    """Resizes batches of square images, pixels (B, C, H, H) float64 in 0..255, to (B, C, size, size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, pixels: Tensor) -> Tensor:
        positions = _positions(pixels, 3)
        side = positions.max() + 1
        size = torch.full_like(side, self.size)
        weights = _weights(positions, torch.zeros_like(side), side, size, _numbers(self.size, positions))
        return _width_first(pixels, weights, weights.T)


def _numbers(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.float64, device=like.device)


def _positions(pixels: Tensor, axis: int) -> Tensor:
    """The numbers of the pixels along an axis, float64. (A size that is a tensor can be compared without fixing it.)"""
    return torch.arange(pixels.shape[axis], dtype=torch.float64, device=pixels.device)


def _weights(positions: Tensor, start: Tensor, stop: Tensor, size: Tensor, outputs: Tensor) -> Tensor:
    """The weights of one pass, (outputs, pixels) float64, whole multiples of 1 / `_UNIT`.

    Args:
        positions: the numbers of the pixels.
        start, stop: the interval that is resized, in pixels; scalars.
        size: the number of pixels to which it is resized; a scalar.
        outputs: the numbers of those of them that are wanted.
    """
    start, stop = start.float(), stop.float()  # as Pillow keeps its box
    scale = (stop - start).double() / size
    support = scale.clamp(min=1.0)
    centres = start.double() + (outputs + 0.5) * scale
    offsets = (positions - centres[:, None] + 0.5) * (1.0 / support)
    weights = (1.0 - offsets.abs()).clamp(min=0.0)
    return (weights / weights.sum(1, keepdim=True) * _UNIT + 0.5).floor() / _UNIT


def _begins_with_height(height: Tensor, new_height: Tensor, width: Tensor, new_width: Tensor) -> Tensor | None:
    """Whether the rows are resized first, a scalar; None if they never are. `height` and `width` are positions."""
    if not _MAY_BEGIN_WITH_HEIGHT:
        return None
    shrinks = height.max() + 1 - new_height
    return (shrinks > 0) & (shrinks > 2 * (width.max() + 1 - new_width))


def _resized(pixels: Tensor, rows: Tensor, columns: Tensor, begin_with_height: Tensor | None) -> Tensor:
    columns = columns.T.contiguous()  # a branch must not return a view of its input
    if begin_with_height is None:
        return _width_first(pixels, rows, columns)
    return torch.cond(begin_with_height, _height_first, _width_first, (pixels, rows, columns))


def _width_first(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _pass(rows, _pass(pixels, columns))


def _height_first(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _pass(_pass(rows, pixels), columns)


def _pass(left: Tensor, right: Tensor) -> Tensor:
    return (left @ right + 0.5).floor().clamp(0.0, 255.0)
