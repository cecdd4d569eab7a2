"""The definition of the loss in plain PyTorch; every kernel is tested against it."""

from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.fused_loss import accumulator, reduce

LIMIT = 1e30  # logits saturate here, so that finite logits give a finite loss


def dense_target(target: Tensor, logits: Tensor, label_smoothing: float, threshold: float | None) -> Tensor:
    """The target as (B, C) probabilities: labels smoothed over the classes, then everything cut at the threshold."""
    if target.dim() == 1:
        hot = F.one_hot(target, logits.shape[1]).to(accumulator(logits.dtype))
        target = hot * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    else:
        target = target.to(accumulator(logits.dtype))
    return target if threshold is None else (target > threshold).to(target.dtype)


def balanced_bce(
    logits: Tensor,
    target: Tensor,
    bias: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    label_smoothing: float,
    threshold: float | None,
    reduction: str,
) -> Tensor:
    """The arguments of the op ``ltfast::balanced_bce``; differentiable any number of times in the logits."""
    dtype = accumulator(logits.dtype)
    z = (logits.to(dtype) + bias).clamp(-LIMIT, LIMIT)
    t = dense_target(target, logits, label_smoothing, threshold)
    loss = F.binary_cross_entropy_with_logits(z, t, weight, reduction="none", pos_weight=pos_weight)
    return reduce(loss.sum(1), reduction)
