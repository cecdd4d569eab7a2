"""What people use today: the published losses, written out plainly in PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def agcl(
    cosine: Tensor,
    target: Tensor,
    rarity: Tensor,
    scale: float = 20.0,
    margin: float = 0.1,
    noise_mul: float = 0.5,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    smoothing: float = 0.1,
) -> Tensor:
    """LPT's loss with PyTorch's own normal noise; rarity is (log n_max - log n_c) / max."""
    classes = cosine.shape[1]
    noise = (torch.randn_like(cosine) / 3).clamp(-1, 1).abs()
    own = F.one_hot(target, classes).to(cosine.dtype)
    log_p = F.log_softmax(scale * (cosine - noise_mul * noise * rarity - margin * own), dim=1)
    p = log_p.exp()
    focus = (1 - p * own - (1 - p) * (1 - own)) ** (gamma_pos * own + gamma_neg * (1 - own))
    smoothed = own * (1 - smoothing) + smoothing / classes
    return -(smoothed * focus * log_p).sum(1).mean()


def balanced_bce(logits: Tensor, target: Tensor, bias: Tensor, smoothing: float = 0.1) -> Tensor:
    """LiVT's loss on labels or soft targets; bias is the log-odds of the class prior."""
    classes = logits.shape[1]
    if target.dim() == 1:
        target = F.one_hot(target, classes).to(logits.dtype) * (1 - smoothing) + smoothing / classes
    return classes * F.binary_cross_entropy_with_logits(logits + bias, target)
