"""The definition of the loss in plain PyTorch; every kernel is tested against it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.balanced_bce.settings import BalancedBceSettings
from ltfast.ops.core.checks import check_reference_labels
from ltfast.ops.core.tensors import accumulator, one_hot, reduce

LIMIT = 1e30  # logits saturate here, so that finite logits give a finite loss


def soft_values(classes: int, settings: BalancedBceSettings) -> tuple[float, float]:
    """(a, b), where a t + b is the smoothed soft target t."""
    return 1 - settings.label_smoothing, settings.label_smoothing / classes


def label_values(classes: int, settings: BalancedBceSettings) -> tuple[float, float]:
    """The targets of the label and of the other classes: smoothed over the classes, then binarised at the threshold."""
    smoothing, threshold = settings.label_smoothing, settings.threshold
    off = smoothing / classes
    on = 1 - smoothing + off
    return (on, off) if threshold is None else (float(on > threshold), float(off > threshold))


def balanced_bce(
    logits: Tensor,
    target: Tensor,
    bias: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    settings: BalancedBceSettings,
) -> Tensor:
    """The loss as the op ``ltfast::balanced_bce`` computes it; differentiable any number of times in the logits.

    (Where a logit saturates, its gradient here is 0; the kernels keep the gradient of the unsaturated loss.)
    """
    if target.dim() == 1:
        check_reference_labels(target, logits.shape[1], ignore_index=settings.ignore_index)
    losses = elementwise(logits, target, bias, weight, pos_weight, settings)
    counted = target.long() != settings.ignore_index if target.dim() == 1 else None
    return reduce(losses.sum(1), settings.reduction, counted)


def elementwise(
    logits: Tensor,
    target: Tensor,
    bias: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    settings: BalancedBceSettings,
) -> Tensor:
    """The loss of each logit, (B, C): 0 in the rows of ignored labels."""
    dtype = accumulator(logits.dtype)
    x = logits.to(dtype)
    if target.dim() == 1:
        target = target.long()
        counted = (target != settings.ignore_index)[:, None]
        x, target = torch.where(counted, x, 0), torch.where(counted[:, 0], target, 0)
    z = x + bias.to(dtype)
    z = z.clamp(-LIMIT, LIMIT) + (z - z).detach()  # the difference is 0, or NaN for an infinite logit
    if target.dim() == 1:
        on, off = label_values(z.shape[1], settings)
        t = one_hot(target.long(), z).to(dtype) * (on - off) + off
    else:
        on, off = soft_values(z.shape[1], settings)
        t = target.to(dtype) * on + off
        t = t if settings.threshold is None else (t > settings.threshold).to(dtype)
    weight = None if weight is None else weight.to(dtype)
    pos_weight = None if pos_weight is None else pos_weight.to(dtype)
    losses = F.binary_cross_entropy_with_logits(z, t, weight, reduction="none", pos_weight=pos_weight)
    return torch.where(counted, losses, 0) if target.dim() == 1 else losses
