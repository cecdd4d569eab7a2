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


def vmf_cross_entropy(
    features: Tensor, target: Tensor, directions: Tensor, kappa: Tensor, log_prior: Tensor, temperature: float = 0.1
) -> Tensor:
    """ProCo's loss by the closed form (ltfast.ops.vmf's formulas, two terms of the series) in plain PyTorch."""
    nu = features.shape[1] / 2 - 1
    s = (nu**2 + kappa**2).sqrt()
    scaled = directions * (2 / temperature * kappa)[:, None]
    increments = torch.addmm(features.square().sum(1, keepdim=True) / temperature**2, features, scaled.T)
    longer = (s**2 + increments).clamp(min=nu**2).sqrt()

    def series(s: Tensor) -> Tensor:
        p, q = 1 / s, (nu / s) ** 2
        return p * (3 - 5 * q) / 24 + p**2 * (1 - 6 * q + 5 * q**2) / 16

    d = increments / (longer + s)
    logits = d - nu * torch.log1p(d / (nu + s)) - 0.5 * torch.log1p(d / s) + series(longer) - series(s)
    return F.cross_entropy(logits + log_prior, target)


def linear_cross_entropy(features: Tensor, target: Tensor, directions: Tensor, log_prior: Tensor) -> Tensor:
    """What a linear classifier costs: the same matrix products, and no Bessel function."""
    return F.cross_entropy(F.linear(features, directions, log_prior), target)
