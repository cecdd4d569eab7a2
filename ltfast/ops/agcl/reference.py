"""The definition of the loss in plain PyTorch; every kernel is tested against it."""

import torch
from torch import Tensor

from ltfast.ops.agcl.settings import AgclSettings, AgclShareSettings
from ltfast.ops.core.checks import check_reference_labels
from ltfast.ops.core.tensors import accumulator, one_hot, reduce
from ltfast.ops.noise import half_normal

# Differences saturate here, so that finite logits give a finite loss, and such classes are left out. The same number in
# float32 and float64.
LOWEST = -(2.0**100)


def agcl(
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    class_weight: Tensor | None,
    seed: Tensor | None,
    settings: AgclSettings,
) -> Tensor:
    """The loss as the op ``ltfast::agcl`` computes it; differentiable any number of times in the logits.

    (Where a difference saturates, its gradient here is 0; the kernels keep the gradient of the unsaturated loss.)
    """
    check_reference_labels(target, logits.shape[1], ignore_index=settings.ignore_index)
    target = target.long()
    counted = target != settings.ignore_index
    u = torch.where(counted[:, None], logits.to(accumulator(logits.dtype)), 0)
    target = torch.where(counted, target, 0)
    own = one_hot(target, u)
    if class_noise is not None and seed is not None:
        rows, columns = u.shape
        noise = half_normal(rows, columns, seed.to(u.device), first_row=settings.first_row)
        u = u - class_noise.to(u.dtype) * noise
    u = torch.where(own, u - settings.margin, u)
    t = (settings.scale * (u - u.detach().amax(1, keepdim=True))).clamp(min=LOWEST)
    log_p = torch.log_softmax(t, dim=1)
    # 1 - p_y without cancellation, and kept from 0, where the derivative of a power under 1 is infinite.
    rest = torch.where(own, 0, log_p.exp()).sum(1).clamp(min=torch.finfo(u.dtype).tiny)
    positive = rest**settings.gamma_pos * log_p.gather(1, target[:, None]).squeeze(1)
    left_out = own | (t <= LOWEST)
    negative = torch.where(left_out, 0, torch.exp(settings.gamma_neg * log_p) * log_p)
    if class_weight is not None:
        class_weight = class_weight.to(u.dtype)
        positive, negative = class_weight[target] * positive, class_weight * negative
    negative = negative.sum(1)
    return reduce(-(settings.weight_pos * positive + settings.weight_neg * negative), settings.reduction, counted)


def agcl_share(
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    settings: AgclShareSettings,
) -> Tensor:
    """The sums of the op ``ltfast::agcl_share``; differentiable any number of times in the logits."""
    u = logits.to(accumulator(logits.dtype))
    own = torch.arange(u.shape[1], device=u.device) == target[:, None]
    if class_noise is not None and seed is not None:
        u = u - class_noise.to(u.dtype) * half_normal(u.shape[0], u.shape[1], seed.to(u.device), settings.first)
    u = torch.where(own, u - settings.margin, u)
    peak = u.detach().amax(1).clamp(min=torch.finfo(u.dtype).min)
    t = (settings.scale * (u - peak[:, None])).clamp(min=LOWEST)
    left_out = own | (t <= LOWEST)
    power = torch.exp(settings.gamma_neg * t)
    sums = (torch.where(left_out, 0, x).sum(1, dtype=torch.float64) for x in (t.exp(), power, power * t))
    return torch.stack([peak.double(), torch.where(own, u, 0).sum(1).double(), *sums], dim=1)
