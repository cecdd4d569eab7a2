import torch
from ltfast.ops.squared_error.settings import SquaredErrorSettings
from torch import Tensor

from ltfast.ops.core.checks import check_reference_labels
from ltfast.ops.core.tensors import accumulator, one_hot, reduce


def squared_error(logits: Tensor, target: Tensor, settings: SquaredErrorSettings) -> Tensor:
    check_reference_labels(target, logits.shape[1], ignore_index=settings.ignore_index)
    counted = target.long() != settings.ignore_index
    x = logits.to(accumulator(logits.dtype))
    own = one_hot(torch.where(counted, target.long(), 0), x)
    return reduce((x - settings.scale * own).square().sum(1), settings.reduction, counted)
