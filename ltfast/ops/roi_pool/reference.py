"""The definition in plain PyTorch: the bilinear weights of all samples, summed for each axis."""

import torch
from torch import Tensor

from ltfast.ops.core.tensors import accumulator
from ltfast.ops.roi_pool.settings import RoiPoolSettings


def axis_weights(low: Tensor, high: Tensor, size: int, settings: RoiPoolSettings) -> Tensor:
    """The weights (N, L, size) of the pixels of one axis for boxes from ``low`` to ``high``, (N, L), in pixels."""

    def count(n: int) -> Tensor:
        return torch.arange(n, device=low.device, dtype=low.dtype)

    _, output_size, sampling_ratio, aligned = settings
    extent = high - low if aligned else (high - low).clamp(min=1)
    bins = (extent / output_size)[..., None, None]
    wide = bins.abs() > 1 / torch.finfo(low.dtype).eps  # products with such bins may overflow
    start = low[..., None, None] + count(output_size)[:, None] * bins
    if sampling_ratio > 0:
        samples, index = torch.full_like(bins, sampling_ratio), count(sampling_ratio)
    else:  # half a pixel apart or more, so few of them lie in the image: from one before the first
        samples = bins.ceil()
        before = torch.where(wide, (-1 - start) / (bins / samples), (-1 - start) * samples / bins)
        index = (before - 1.5).floor().clamp(min=0) + count(2 * size + 6)
    at = start + torch.where(wide, (index + 0.5) * (bins / samples), (index + 0.5) * bins / samples)
    inside = (index < samples) & (at >= -1) & (at <= size)
    bilinear = (1 - (at.clamp(0, size - 1)[..., None] - count(size)).abs()).clamp(min=0)
    return torch.where(inside[..., None], bilinear / (output_size * samples[..., None]), 0).sum((2, 3))


def roi_pool(features: Tensor, boxes: Tensor, settings: RoiPoolSettings) -> Tensor:
    dtype = accumulator(features.dtype)
    x1, y1, x2, y2 = (boxes.to(dtype) * settings.spatial_scale - (0.5 if settings.aligned else 0)).unbind(2)
    y = axis_weights(y1, y2, features.shape[2], settings)
    x = axis_weights(x1, x2, features.shape[3], settings)
    y = y.where(boxes.isfinite().all(2, keepdim=True), torch.nan)
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("nlh,nlw,nchw->nlc", y, x, features.to(dtype)).to(features.dtype)
