"""The definition in plain PyTorch: the expansion of debye.py, in float64 whatever the dtype of x."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ltfast.ops.bessel.debye import COEFFICIENTS, ORDER, ZERO, ZERO_HIGH, ZERO_LOW


def log_iv(nu: Tensor, x: Tensor) -> Tensor:
    order, wide = torch.broadcast_tensors(nu.double(), x.double())
    v = _climbed(order)
    at = _point(v, wide)
    log_series, _, _ = _series(at.p, at.q)
    log_s, log_sum = torch.log(at.s) - torch.log(at.scale), torch.log(at.sum) - torch.log(at.scale)
    tail = log_series - 0.5 * (math.log(2 * math.pi) + log_s)
    # as it stands
    plain = at.s + at.v * (torch.log(wide) - log_sum)
    # less its value at x = ZERO v, which is 0: where the terms above cancel
    half = 134217729 * at.v  # Veltkamp and Dekker: the product with ZERO_HIGH (26 bits) is then exact in two parts
    high = half - (half - at.v)
    root_high, root_low = high * ZERO_HIGH, (at.v - high) * ZERO_HIGH + at.v * ZERO_LOW
    step = (at.x - root_high) - root_low
    root, s_root = at.v * ZERO, at.v * math.sqrt(1 + ZERO**2)
    rise = step * (at.x + root) / (at.s + s_root)  # s - s_root
    near = rise + at.v * (torch.log1p(step / root) - torch.log1p(rise / (at.v + s_root)))
    direct = torch.where((at.x > 0.3 * at.v) & (at.x < 1.3 * at.v), near, plain) / at.scale + tail
    # below the order where the expansion is good: I_{v-1} = I_v (2v + x^2 B_v) / x
    lead = at.s / at.scale - v * log_sum + tail
    climbed = lead + _denominators(v, at).log().sum(0) + torch.where(order > 0, order * torch.log(wide), 0.0)
    return torch.where(order < ORDER, climbed, direct).to(x.dtype)


def bessel_ratio(nu: Tensor, x: Tensor) -> Tensor:
    order, wide = torch.broadcast_tensors(nu.double(), x.double())
    v = _climbed(order)
    at = _point(v, wide)
    ratio_over_x = torch.where(order < ORDER, 1 / _denominators(v, at)[-1], _ratio_over_x(at))
    return (wide * ratio_over_x).to(x.dtype)


def bessel_ratio_grad(nu: Tensor, x: Tensor) -> Tensor:
    """d bessel_ratio / dx, without the cancellation of Bessel's equation, 1 - A^2 - (2 nu + 1) A / x."""
    order, wide = torch.broadcast_tensors(nu.double(), x.double())
    v = _climbed(order)
    at = _point(v, wide)
    square = (wide * at.p) ** 2
    _, first, second = _series(at.p, at.q)
    slope = v * at.p * (at.scale / at.sum) + at.p**2 * (0.5 - at.q - first + square * (2 * first + second))
    # A_{j-1} = 1 / (2j / x + A_j), differentiated
    lowered = slope
    for step, denominator in enumerate(_denominators(v, at)):
        j = v - step
        lowered = 2 * j / denominator**2 - (wide / denominator) ** 2 * lowered
    return torch.where(order < ORDER, lowered, slope).to(x.dtype)


class _Point(NamedTuple):
    """v, x, s = sqrt(v^2 + x^2) and sum = v + s, times a power of two that keeps squares in range; without it p = 1 / s
    and q = (v p)^2."""

    scale: Tensor
    v: Tensor
    x: Tensor
    s: Tensor
    sum: Tensor
    p: Tensor
    q: Tensor


def _point(v: Tensor, x: Tensor) -> _Point:
    scale = torch.where(torch.maximum(v, x) > 2.0**500, v.new_tensor(2.0**-600), 1.0)
    small_v, small_x = v * scale, x * scale
    s = torch.hypot(small_v, small_x)
    return _Point(scale, small_v, small_x, s, small_v + s, scale / s, (small_v / s) ** 2)


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


def _ratio_over_x(at: _Point) -> Tensor:
    """B_v = I_{v+1}(x) / (x I_v(x)), the expansion's derivative in x^2, twice."""
    _, weighted, _ = _series(at.p, at.q)
    return at.scale / at.sum - at.p**2 * (0.5 + weighted)


def _denominators(v: Tensor, at: _Point) -> Tensor:
    """The ORDER steps down from order v, stacked: 2j + x^2 B_j = 1 / B_{j-1} for j = v, v - 1, ..."""
    x, ratio_over_x = at.x / at.scale, _ratio_over_x(at)
    steps = []
    for step in range(ORDER):
        steps.append(2 * (v - step) + x * (x * ratio_over_x))
        ratio_over_x = 1 / steps[-1]
    return torch.stack(steps)
