"""The definition in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ltfast.ops.core.torch_internals import unwrapped


def taylor_importance_(
    accumulators: Sequence[Tensor], parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    for accumulator, parameter, gradient in zip(accumulators, parameters, gradients, strict=True):
        accumulator += (parameter.to(accumulator.dtype) * gradient.to(accumulator.dtype)) ** 2


def importance_threshold(accumulators: Sequence[Tensor], masks: Sequence[Tensor], fraction: float) -> Tensor:
    values = torch.cat([values.flatten() for values in accumulators])
    if not masks:
        return values.kthvalue(max(round(fraction * values.numel()), 1)).values
    chosen = torch.cat([mask.bool().flatten() for mask in masks])
    if type(chosen) is Tensor and chosen.device.type == "cpu" and not unwrapped(chosen).any():
        raise ValueError("no value is left: expected masks with a True element")
    rank = (fraction * chosen.sum().double()).round().long().clamp(min=1)
    return values.masked_fill(~chosen, torch.nan).sort().values.gather(0, rank[None] - 1)[0]  # NaN is the greatest


def apply_masks_(tensors: Sequence[Tensor], masks: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for i, (tensor, mask) in enumerate(zip(tensors, masks, strict=True)):
        tensor.copy_(torch.where(mask.bool(), values[i] if values else torch.zeros_like(tensor), tensor))
