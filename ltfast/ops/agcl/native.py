"""The CPU kernel: csrc/agcl.h."""

import torch
from torch import Tensor

from ltfast.ops import backends
from ltfast.ops.fused_loss import empty_gradient, empty_loss


def agcl(
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    scale: float,
    margin: float,
    weight_pos: float,
    weight_neg: float,
    gamma_pos: float,
    gamma_neg: float,
    reduction: str,
    with_gradient: bool,
    unit: float,
) -> tuple[Tensor, Tensor]:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, classes = logits.shape
    loss = empty_loss(logits, reduction)
    gradient = empty_gradient(logits, with_gradient)
    backends.native().agcl(
        str(logits.dtype)[6:],
        logits.data_ptr(),
        logits.stride(0),
        target.data_ptr(),
        0 if class_noise is None else class_noise.data_ptr(),
        0 if seed is None else seed.item(),
        loss.data_ptr(),
        gradient.data_ptr() if with_gradient else 0,
        rows,
        classes,
        scale,
        margin,
        weight_pos,
        weight_neg,
        gamma_pos,
        gamma_neg,
        unit,
        reduction,
        torch.get_num_threads(),
    )
    return loss, gradient
