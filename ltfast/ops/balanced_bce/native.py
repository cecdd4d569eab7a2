"""The CPU kernel: csrc/ops/balanced_bce.cpp."""

import math

import torch
from torch import Tensor

from ltfast.ops.balanced_bce.reference import label_values, soft_values
from ltfast.ops.balanced_bce.settings import BalancedBceSettings
from ltfast.ops.core import backends
from ltfast.ops.core.tensors import accumulator, empty_gradient, empty_loss


def balanced_bce(
    logits: Tensor,
    target: Tensor,
    bias: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    settings: BalancedBceSettings,
    with_gradient: bool,
    unit: float,
) -> tuple[Tensor, Tensor]:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, classes = logits.shape
    soft = target.dim() == 2
    if soft:
        target = target.to(accumulator(logits.dtype))
        if target.stride(1) != 1:
            target = target.contiguous()
    on, off = soft_values(classes, settings) if soft else label_values(classes, settings)
    if weight is not None or pos_weight is not None:  # the kernel takes both vectors or neither
        weight = torch.ones_like(bias) if weight is None else weight
        pos_weight = torch.ones_like(bias) if pos_weight is None else pos_weight
    loss = empty_loss(logits, settings.reduction)
    gradient = empty_gradient(logits, with_gradient)
    backends.native().balanced_bce(
        str(logits.dtype)[6:],
        logits.data_ptr(),
        logits.stride(0),
        0 if soft else target.data_ptr(),
        target.data_ptr() if soft else 0,
        target.stride(0),
        bias.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if pos_weight is None else pos_weight.data_ptr(),
        loss.data_ptr(),
        gradient.data_ptr() if with_gradient else 0,
        rows,
        classes,
        on,
        off,
        unit,
        math.nan if settings.threshold is None else settings.threshold,
        settings.ignore_index,
        settings.reduction,
        torch.get_num_threads(),
    )
    return loss, gradient
