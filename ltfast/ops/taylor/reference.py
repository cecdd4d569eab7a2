"""The definition in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def taylor_importance_(
    accumulators: Sequence[Tensor], parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    for accumulator, parameter, gradient in zip(accumulators, parameters, gradients, strict=True):
        accumulator += (parameter.to(accumulator.dtype) * gradient.to(accumulator.dtype)) ** 2


def importance_threshold(accumulators: Sequence[Tensor], masks: Sequence[Tensor], fraction: float) -> Tensor:
    if masks:
        accumulators = [values[mask.bool()] for values, mask in zip(accumulators, masks, strict=True)]
    values = torch.cat([values.flatten() for values in accumulators])
    if not values.numel():
        raise ValueError("no value is left: expected masks with a True element")
    return values.kthvalue(max(round(fraction * values.numel()), 1)).values


def apply_masks_(tensors: Sequence[Tensor], masks: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for i, (tensor, mask) in enumerate(zip(tensors, masks, strict=True)):
        tensor.copy_(torch.where(mask.bool(), values[i] if values else torch.zeros_like(tensor), tensor))
