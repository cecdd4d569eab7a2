"""The definition in plain PyTorch: the expansion of debye.py, in float64 whatever the dtype of x."""

import math

import torch
from torch import Tensor

from ltfast.ops.bessel.debye import COEFFICIENTS, ORDER, ZERO, ZERO_HIGH, ZERO_LOW


def log_iv(nu: Tensor, x: Tensor) -> Tensor:
    order, wide = torch.broadcast_tensors(nu.double(), x.double())
    v = _climbed(order)
    s = torch.hypot(v, wide)
    p = 1 / s
    log_series, _, _ = _series(p, (v * p) ** 2)
    tail = log_series - 0.5 * torch.log(2 * math.pi * s)
    # as it stands
    plain = s + v * torch.log(wide / (v + s))
    # less its value at x = ZERO v, which is 0: where the terms above cancel
    half = 134217729 * v  # Veltkamp and Dekker: the product with ZERO_HIGH (26 bits) is then exact in two parts
    high = half - (half - v)
    root_high, root_low = high * ZERO_HIGH, (v - high) * ZERO_HIGH + v * ZERO_LOW
    step = (wide - root_high) - root_low
    root, s_root = v * ZERO, v * math.sqrt(1 + ZERO**2)
    rise = step * (wide + root) / (s + s_root)  # s - s_root
    near = rise + v * (torch.log1p(step / root) - torch.log1p(rise / (v + s_root)))
    direct = torch.where((wide > 0.3 * v) & (wide < 1.3 * v), near, plain) + tail
    # below the order where the expansion is good: I_{v-1} = I_v (2v + x^2 B_v) / x
    lead = s - v * torch.log(v + s) + tail
    climbed = lead + _denominators(v, wide).log().sum(0) + torch.where(order > 0, order * torch.log(wide), 0.0)
    return torch.where(order < ORDER, climbed, direct).to(x.dtype)


def bessel_ratio(nu: Tensor, x: Tensor) -> Tensor:
    order, wide = torch.broadcast_tensors(nu.double(), x.double())
    v = _climbed(order)
    ratio_over_x = torch.where(order < ORDER, 1 / _denominators(v, wide)[-1], _ratio_over_x(v, wide))
    return (wide * ratio_over_x).to(x.dtype)


def bessel_ratio_grad(nu: Tensor, x: Tensor) -> Tensor:
    """d bessel_ratio / dx, without the cancellation of Bessel's equation, 1 - A^2 - (2 nu + 1) A / x."""
    order, wide = torch.broadcast_tensors(nu.double(), x.double())
    v = _climbed(order)
    s = torch.hypot(v, wide)
    p = 1 / s
    q, square = (v * p) ** 2, (wide * p) ** 2
    _, first, second = _series(p, q)
    slope = v * p / (v + s) + p**2 * (0.5 - q - first + square * (2 * first + second))
    # A_{j-1} = 1 / (2j / x + A_j), differentiated
    lowered = slope
    for step, denominator in enumerate(_denominators(v, wide)):
        j = v - step
        lowered = 2 * j / denominator**2 - (wide / denominator) ** 2 * lowered
    return torch.where(order < ORDER, lowered, slope).to(x.dtype)


def _climbed(order: Tensor) -> Tensor:
    return torch.where(order < ORDER, order + ORDER, order)


def _series(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sum p^k d_k(q), and the same with each power of 1 / s (k + 2i of them) times its exponent, and its square."""
    sums = [torch.zeros_like(p) for _ in range(3)]
    for k, row in reversed(list(enumerate(COEFFICIENTS, 1))):
        for power in range(3):
            inner = torch.zeros_like(p)
            for i, coefficient in reversed(list(enumerate(row))):
                inner = inner * q + coefficient * (k + 2 * i) ** power
            sums[power] = (sums[power] + inner) * p
    return sums[0], sums[1], sums[2]


def _ratio_over_x(v: Tensor, x: Tensor) -> Tensor:
    """B_v = I_{v+1}(x) / (x I_v(x)), the expansion's derivative in x^2, twice."""
    s = torch.hypot(v, x)
    p = 1 / s
    _, weighted, _ = _series(p, (v * p) ** 2)
    return 1 / (v + s) - p**2 * (0.5 + weighted)


def _denominators(v: Tensor, x: Tensor) -> Tensor:
    """The ORDER steps down from order v, stacked: 2j + x^2 B_j = 1 / B_{j-1} for j = v, v - 1, ..."""
    ratio_over_x = _ratio_over_x(v, x)
    steps = []
    for step in range(ORDER):
        steps.append(2 * (v - step) + x * (x * ratio_over_x))
        ratio_over_x = 1 / steps[-1]
    return torch.stack(steps)
