"""The CPU kernel: csrc/ops/agcl.cpp."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.agcl.settings import AgclSettings, AgclShareSettings
from ltfast.ops.core import backends
from ltfast.ops.core.tensors import empty_gradient, empty_loss

_WIDTH = 16  # the kernel reads weights of whole vectors


def agcl(
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    class_weight: Tensor | None,
    seed: Tensor | None,
    settings: AgclSettings,
    with_gradient: bool,
    unit: float,
) -> tuple[Tensor, Tensor]:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, classes = logits.shape
    if class_weight is not None:
        class_weight = F.pad(class_weight, (0, -classes % _WIDTH))
    loss = empty_loss(logits, settings.reduction)
    gradient = empty_gradient(logits, with_gradient)
    backends.native().agcl(
        str(logits.dtype)[6:],
        logits.data_ptr(),
        logits.stride(0),
        target.data_ptr(),
        0 if class_noise is None else class_noise.data_ptr(),
        0 if class_weight is None else class_weight.data_ptr(),
        0 if seed is None else seed.item(),
        loss.data_ptr(),
        gradient.data_ptr() if with_gradient else 0,
        rows,
        classes,
        unit,
        *settings,
        torch.get_num_threads(),
    )
    return loss, gradient


def agcl_share(
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    settings: AgclShareSettings,
    statistics: Tensor,
    incoming: Tensor | None,
) -> Tensor | None:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, classes = logits.shape
    gradient = None if incoming is None else empty_gradient(logits, True)
    backends.native().agcl_share(
        str(logits.dtype)[6:],
        logits.data_ptr(),
        logits.stride(0),
        target.data_ptr(),
        0 if class_noise is None else class_noise.data_ptr(),
        0 if seed is None else seed.item(),
        statistics.data_ptr(),
        0 if incoming is None else incoming.data_ptr(),
        0 if gradient is None else gradient.data_ptr(),
        rows,
        classes,
        *settings,
        torch.get_num_threads(),
    )
    return gradient
