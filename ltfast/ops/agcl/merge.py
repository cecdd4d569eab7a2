"""Puts the contributions of several shares of the classes together."""

import torch
from torch import Tensor

from ltfast.ops.agcl.reference import LOWEST


def merged_shares(parts: Tensor, scale: float, gamma_neg: float) -> Tensor:
    """The contribution (B, 5) of all classes of R shares, from theirs, (R, B, 5); see the op ``ltfast::agcl_share``.

    It is differentiable. The largest logits count as constants.
    """
    peaks, own, masses, weights, weighted = parts.unbind(2)
    peaks = peaks.detach()
    peak = peaks.amax(0)
    shift = (scale * (peaks - peak)).clamp(min=LOWEST)
    faded = torch.where(shift > LOWEST, torch.exp(gamma_neg * shift), 0)  # 0 for a share without a class that counts
    sums = (own, shift.exp() * masses, faded * weights, faded * (weighted + shift * weights))
    return torch.stack([peak, *(x.sum(0) for x in sums)], dim=1)
