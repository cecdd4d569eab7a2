"""The definition in plain PyTorch and float64; differentiable any number of times in the features."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.bessel.debye import COEFFICIENTS, ORDER
from ltfast.ops.core.checks import check_reference_labels
from ltfast.ops.core.tensors import accumulator, reduce
from ltfast.ops.vmf.settings import VmfSettings


def saturated(x: Tensor) -> Tensor:
    """Features and concentrations, limited so that nothing overflows; infinite ones become NaN."""
    limit = 1e100 if x.dtype == torch.float64 else 1e12
    return x.clamp(-limit, limit) + (x - x).detach()


def log_partition(nu: float, square: Tensor) -> Tensor:
    """F(k) = log I_nu(k) - nu log k at k^2 = ``square``, any shape, float64: finite and smooth at 0 too."""
    v = nu + ORDER if nu < ORDER else nu
    s = torch.sqrt(v**2 + square)
    p = 1 / s
    q = (v * p) ** 2
    value = s - v * torch.log(v + s) - 0.5 * torch.log(2 * math.pi * s) + _series(p, q, 0)
    if nu >= ORDER:
        return value
    # I_{j-1}(k) = I_j(k) (2j + k^2 B_j) / k, B_j = I_{j+1}(k) / (k I_j(k)), down to j - 1 = nu
    ratio_over_k = 1 / (v + s) - p**2 * (0.5 + _series(p, q, 1))
    for step in range(ORDER):
        denominator = 2 * (v - step) + square * ratio_over_k
        value = value + torch.log(denominator)
        ratio_over_k = 1 / denominator
    return value


def _series(p: Tensor, q: Tensor, weight: int) -> Tensor:
    """sum p^k d_k(q), each power of 1 / s times its exponent to the ``weight``-th."""
    total = torch.zeros_like(p)
    for k, row in reversed(list(enumerate(COEFFICIENTS, 1))):
        inner = torch.zeros_like(q)
        for i, coefficient in reversed(list(enumerate(row))):
            inner = inner * q + coefficient * (k + 2 * i) ** weight
        total = (total + inner) * p
    return total


def vmf_ratio(increments: Tensor, kappa: Tensor, nu: float) -> Tensor:
    """F(k') - F(k) for k'^2 = k^2 + increment, (B, C)."""
    square = kappa.double() ** 2
    ratio = log_partition(nu, (square + increments.double()).clamp(min=0)) - log_partition(nu, square)
    return ratio.to(increments.dtype)


def logits(features: Tensor, directions: Tensor, kappa: Tensor, log_prior: Tensor | None, temperature: float) -> Tensor:
    """(B, C), float64."""
    z, mu, k = saturated(features.double()), directions.double(), saturated(kappa.double())
    increments = 2 / temperature * k * (z @ mu.T) + z.square().sum(1, keepdim=True) / temperature**2
    ratio = vmf_ratio(increments, k, features.shape[1] / 2 - 1)
    return ratio if log_prior is None else ratio + log_prior.double()


def vmf_cross_entropy(
    features: Tensor,
    target: Tensor | None,
    directions: Tensor,
    kappa: Tensor,
    log_prior: Tensor | None,
    settings: VmfSettings,
) -> Tensor:
    """The loss as the op ``ltfast::vmf_cross_entropy`` computes it: without a target, the log-sum-exp of the logits."""
    dtype = accumulator(features.dtype)
    if target is None:
        rows = logits(features, directions, kappa, log_prior, settings.temperature).logsumexp(1)
        return reduce(rows.to(dtype), settings.reduction)
    check_reference_labels(target, len(directions), ignore_index=settings.ignore_index)
    target = target.long()
    counted = target != settings.ignore_index
    features = torch.where(counted[:, None], features, 0)
    scores = logits(features, directions, kappa, log_prior, settings.temperature)
    rows = F.cross_entropy(scores, torch.where(counted, target, 0), reduction="none")
    return reduce(rows.to(dtype), settings.reduction, counted)
