"""ProCo's loss by the authors' algorithm, written plainly: what ``ltfast.losses.ProCoLoss`` is measured against.

The statistics and the logits go through N x C x D tensors; the log-partition functions through Miller's backward
recurrence in float64, 2 nu steps from order 2 nu, with a look for overflow (a synchronisation on a GPU) in each.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def scaled_log_iv(nu: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """log I_nu(x) - x and log I_{nu+1}(x) - x for an integer order, by downward recurrence, normalised at order 0."""
    upper, current = torch.zeros_like(x), torch.ones_like(x)
    log_scale = torch.zeros_like(x)  # of `current`
    logs = {}
    for order in range(2 * nu, 0, -1):
        following = 2 * order / x * current + upper
        if torch.isinf(following).any():
            upper, log_scale = upper / current, log_scale + torch.log(current)
            current = torch.ones_like(x)
            following = 2 * order / x * current + upper
        upper, current = current, following  # of the orders `order` and `order - 1`
        if order - 1 in (nu, nu + 1):
            logs[order - 1] = log_scale + torch.log(current)
    zero = log_scale + torch.log(current)
    known = torch.log(torch.special.i0e(x))
    return known + logs[nu] - zero, known + logs[nu + 1] - zero


class LogRatio(torch.autograd.Function):
    """log of the ratio of two log-partition functions, and its derivative I_{nu+1} / I_nu."""

    @staticmethod
    def forward(ctx: Any, kappa: Tensor, nu: int, log_partition: Tensor) -> Tensor:
        log_i, log_following = scaled_log_iv(nu, kappa.double())
        ctx.save_for_backward(torch.exp(log_following - log_i))
        return log_i + kappa - nu * torch.log(kappa + 1e-20) - log_partition

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None, None]:
        (ratio,) = ctx.saved_tensors
        return ratio.clamp(max=1.0) * incoming, None, None


class Baseline:
    """One of the two estimators in use and the other beside it, as the authors update them in every step."""

    def __init__(self, num_classes: int, feature_dim: int, temperature: float = 0.1) -> None:
        self.nu, self.temperature = feature_dim // 2 - 1, temperature
        self.means = [0.9 * F.normalize(torch.randn(num_classes, feature_dim)) for _ in range(2)]
        self.counts = [torch.zeros(num_classes) for _ in range(2)]

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        n, c, d = len(features), len(self.means[0]), features.shape[1]
        for i in range(2):
            onehot = F.one_hot(labels, c).to(features.dtype)
            members = onehot.view(n, c, 1).expand(n, c, d)
            sums = (features.view(n, 1, d).expand(n, c, d) * members).sum(0)
            amount = members.sum(0)
            weight = (amount / (amount + self.counts[i][:, None])).nan_to_num()
            self.means[i] = self.means[i] * (1 - weight) + sums / amount.clamp(min=1) * weight
            self.counts[i] = self.counts[i] + onehot.sum(0)
        length = self.means[0].norm(dim=1)
        kappa = features.shape[1] * length / (1 - length**2)
        self.kappa = torch.where(kappa < 0, 1e5, kappa).clamp(max=1e5)
        log_i, _ = scaled_log_iv(self.nu, self.kappa.double())
        self.log_partition = log_i + self.kappa - self.nu * torch.log(self.kappa + 1e-20)

    def logits(self, features: Tensor) -> Tensor:
        scaled = self.kappa[:, None] * F.normalize(self.means[0])
        longer = (scaled[None] + features[:, None] / self.temperature).norm(dim=2)
        return LogRatio.apply(longer, self.nu, self.log_partition)
