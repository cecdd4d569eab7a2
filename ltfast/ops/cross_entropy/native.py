"""The CPU kernel: csrc/ops/cross_entropy.cpp."""

import torch
from torch import Tensor

from ltfast.ops.core import backends
from ltfast.ops.core.tensors import accumulator, empty_gradient, empty_loss
from ltfast.ops.cross_entropy.settings import CrossEntropySettings


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    settings: CrossEntropySettings,
    with_gradient: bool,
    unit: float,
) -> tuple[Tensor, Tensor]:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, classes = logits.shape
    soft = target.dim() == 2
    dtype = accumulator(logits.dtype)
    if soft:
        target = target.to(dtype)
        if target.stride(1) != 1:
            target = target.contiguous()
    if bias is None:
        bias = torch.zeros(classes, dtype=dtype)
    loss = empty_loss(logits, settings.reduction)
    gradient = empty_gradient(logits, with_gradient)
    backends.native().cross_entropy(
        str(logits.dtype)[6:],
        logits.data_ptr(),
        logits.stride(0),
        0 if soft else target.data_ptr(),
        target.data_ptr() if soft else 0,
        target.stride(0),
        bias.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        loss.data_ptr(),
        gradient.data_ptr() if with_gradient else 0,
        rows,
        classes,
        settings.label_smoothing,
        unit,
        settings.ignore_index,
        settings.reduction,
        torch.get_num_threads(),
    )
    return loss, gradient
