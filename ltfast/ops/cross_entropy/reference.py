"""The definition of the loss in plain PyTorch; every kernel is tested against it."""

import torch
from torch import Tensor

from ltfast.ops.core.checks import check_reference_labels
from ltfast.ops.core.tensors import accumulator, one_hot, reduce
from ltfast.ops.cross_entropy.settings import CrossEntropySettings

LIMIT = (
    1e30  # a score counts as at most this far below the largest of its row, so that finite logits give a finite loss
)


def cross_entropy(
    logits: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None, settings: CrossEntropySettings
) -> Tensor:
    """The loss as the op ``ltfast::cross_entropy`` computes it; differentiable any number of times in the logits.

    (Where a score saturates, the gradient of its own term here is 0; the kernels keep that of the unsaturated loss.)
    """
    dtype = accumulator(logits.dtype)
    z = logits.to(dtype)
    counted = None
    if target.dim() == 1:
        check_reference_labels(target, logits.shape[1], ignore_index=settings.ignore_index)
        target = target.long()
        counted = target != settings.ignore_index
        z, target = torch.where(counted[:, None], z, 0), torch.where(counted, target, 0)
    if bias is not None:
        z = z + bias.to(dtype)
    d = z - z.detach().amax(1, keepdim=True)  # the loss is the same for any number subtracted
    log_sum = d.exp().sum(1).log()
    bounded = d.clamp(min=-LIMIT)
    weight = None if weight is None else weight.to(dtype)
    if target.dim() == 1 and settings.label_smoothing == 0:
        own = torch.where(d == -torch.inf, torch.where(z == -torch.inf, z, bounded), bounded)
        rows = log_sum - own.gather(1, target[:, None])[:, 0]
        rows = rows if weight is None else rows * weight[target]
    else:
        t = one_hot(target, z).to(dtype) if target.dim() == 1 else target.to(dtype)
        share = t * (1 - settings.label_smoothing) + settings.label_smoothing / z.shape[1]
        share = share if weight is None else share * weight
        rows = share.sum(1) * log_sum - (share * bounded).sum(1)
    return reduce(rows, settings.reduction, counted)
