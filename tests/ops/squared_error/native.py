import torch
from ltfast.ops.squared_error.settings import SquaredErrorSettings
from torch import Tensor

from ltfast.ops.core.checks import check_label_values
from ltfast.ops.core.tensors import accumulator, empty_gradient, one_hot, reduce


def squared_error(
    logits: Tensor, target: Tensor, settings: SquaredErrorSettings, with_gradient: bool, unit: float
) -> tuple[Tensor, Tensor]:
    check_label_values(target, logits.shape[1], ignore_index=settings.ignore_index)
    counted = target != settings.ignore_index
    x = logits.detach().to(accumulator(logits.dtype))
    error = x - settings.scale * one_hot(torch.where(counted, target, 0), x)
    gradient = empty_gradient(logits, with_gradient)
    if with_gradient:
        divisor = counted.sum().double() if settings.reduction == "mean" and logits.dtype != torch.float16 else 1
        gradient.copy_(torch.where(counted[:, None], 2 * unit / divisor * error, 0))
    return reduce(error.square().sum(1), settings.reduction, counted), gradient
