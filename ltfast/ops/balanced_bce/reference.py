"""The definition of the loss in plain PyTorch; every kernel is tested against it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.core.checks import check_reference_labels
from ltfast.ops.core.tensors import accumulator, one_hot, reduce

LIMIT = 1e30  # logits saturate here, so that finite logits give a finite loss


def label_values(classes: int, label_smoothing: float, threshold: float | None) -> tuple[float, float]:
    """The targets of the label and of the other classes: smoothed over the classes, then cut at the threshold."""
    off = label_smoothing / classes
    on = 1 - label_smoothing + off
    return (on, off) if threshold is None else (float(on > threshold), float(off > threshold))


def balanced_bce(
    logits: Tensor,
    target: Tensor,
    bias: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    label_smoothing: float,
    threshold: float | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """The arguments of the op ``ltfast::balanced_bce``; differentiable any number of times in the logits.

    (Where a logit saturates, its gradient here is 0; the kernels keep the unsaturated loss's.)
    """
    if target.dim() == 1:
        check_reference_labels(target, logits.shape[1], ignore_index=ignore_index)
    losses = elementwise(logits, target, bias, weight, pos_weight, label_smoothing, threshold, ignore_index)
    return reduce(losses.sum(1), reduction, target.long() != ignore_index if target.dim() == 1 else None)


def elementwise(
    logits: Tensor,
    target: Tensor,
    bias: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    label_smoothing: float,
    threshold: float | None,
    ignore_index: int,
) -> Tensor:
    """The loss of each logit, (B, C): 0 in the rows of ignored labels."""
    dtype = accumulator(logits.dtype)
    x = logits.to(dtype)
    if target.dim() == 1:
        target = target.long()
        counted = (target != ignore_index)[:, None]
        x, target = torch.where(counted, x, 0), torch.where(counted[:, 0], target, 0)
    z = x + bias.to(dtype)
    z = z.clamp(-LIMIT, LIMIT) + (z - z).detach()  # the difference is 0, or NaN for an infinite logit
    if target.dim() == 1:
        on, off = label_values(z.shape[1], label_smoothing, threshold)
        t = one_hot(target.long(), z).to(dtype) * (on - off) + off
    else:
        t = target.to(dtype)
        t = t if threshold is None else (t > threshold).to(dtype)
    weight = None if weight is None else weight.to(dtype)
    pos_weight = None if pos_weight is None else pos_weight.to(dtype)
    losses = F.binary_cross_entropy_with_logits(z, t, weight, reduction="none", pos_weight=pos_weight)
    return torch.where(counted, losses, 0) if target.dim() == 1 else losses
