"""The GPU kernels, and the expansion as other kernels use it. ltfast/ops/bessel/reference.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.bessel import debye
from ltfast.ops.bessel.launch import elementwise_launch
from ltfast.ops.core.launch import chip_of

COEFFICIENTS = tl.constexpr(debye.coefficients(debye.TERMS))
ORDER = tl.constexpr(debye.ORDER)
TERMS = tl.constexpr(debye.TERMS)
ZERO_HIGH = tl.constexpr(debye.ZERO_HIGH)
ZERO_LOW = tl.constexpr(debye.ZERO_LOW)
ZERO = tl.constexpr(debye.ZERO)
ZERO_ROOT = tl.constexpr((1 + debye.ZERO**2) ** 0.5)


@triton.jit
def debye_series(p, q, WEIGHT: tl.constexpr, TERMS: tl.constexpr):
    """sum p^k d_k(q), each power of 1 / s times its exponent to the WEIGHT-th."""
    total = tl.zeros_like(p)
    for k in tl.static_range(TERMS, 0, -1):
        inner = tl.zeros_like(p) + COEFFICIENTS[k - 1][k] * (3 * k) ** WEIGHT
        for i in tl.static_range(k - 1, -1, -1):
            inner = inner * q + COEFFICIENTS[k - 1][i] * (k + 2 * i) ** WEIGHT
        total = (total + inner) * p
    return total


@triton.jit
def log1p(x):
    rounded = 1.0 + x
    return tl.log(rounded) + (x - (rounded - 1.0)) / rounded


@triton.jit
def _ratio_over_x(scale, total, p, q):
    return scale / total - p * p * (0.5 + debye_series(p, q, 1, TERMS))


@triton.jit
def _log_iv(order, v, x, scale, s, p, q):
    """Of v and x, and of them times ``scale``: s = sqrt(v^2 + x^2). p = 1 / s without it."""
    of_scale = (scale < 1.0).to(tl.float64) * 415.88830833596718  # 600 log 2
    log_s = tl.log(s) + of_scale
    log_x = tl.log(x)
    large_v, large_x = v, x
    v, x = v * scale, x * scale
    tail = debye_series(p, q, 0, TERMS) - 0.5 * log_s - 0.91893853320467274  # log(2 pi) / 2
    log_sum = tl.log(v + s) + of_scale
    # less its value at x = ZERO v, which is 0: where the terms of the plain form cancel. Both halves of v times
    # ZERO_HIGH are exact, whatever the compiler fuses.
    high = (v.to(tl.int64, bitcast=True) & -(1 << 27)).to(tl.float64, bitcast=True)
    distance = (x - high * ZERO_HIGH) - ((v - high) * ZERO_HIGH + v * ZERO_LOW)
    root = v * ZERO
    s_root = v * ZERO_ROOT
    rise = distance * (x + root) / (s + s_root)  # s - s_root
    near = (x > 0.3 * v) & (x < 1.3 * v)
    close = rise + v * (log1p(tl.where(near, distance / root, 0.0)) - log1p(tl.where(near, rise / (v + s_root), 0.0)))
    value = tl.where(near, close, s + v * (log_x - log_sum)) / scale + tail
    if tl.min(order) < ORDER:  # I_{v-1} = I_v (2v + x^2 B_v) / x
        ratio = _ratio_over_x(scale, v + s, p, q)
        product = tl.zeros_like(p) + 1.0  # of the denominators, each over s to stay in range
        for step in tl.static_range(ORDER):
            denominator = 2.0 * (large_v - step) + large_x * (large_x * ratio)
            product *= denominator * p
            ratio = 1.0 / denominator
        climbed = s / scale - large_v * log_sum + tail + tl.log(product) + ORDER * log_s
        climbed += tl.where(order > 0, order * log_x, 0.0 * (x - x))
        value = tl.where(order < ORDER, climbed, value)
    return value


@triton.jit
def _bessel_ratio(order, v, x, scale, s, p, q):
    ratio = _ratio_over_x(scale, v * scale + s, p, q)
    if tl.min(order) < ORDER:
        lowered = ratio
        for step in tl.static_range(ORDER):
            lowered = 1.0 / (2.0 * (v - step) + x * (x * lowered))
        ratio = tl.where(order < ORDER, lowered, ratio)
    return x * ratio


@triton.jit
def _bessel_ratio_grad(order, v, x, scale, s, p, q):
    total = v * scale + s
    first = debye_series(p, q, 1, TERMS)
    second = debye_series(p, q, 2, TERMS)
    slope = v * p * (scale / total) + p * p * (0.5 - q - first + (x * p) * (x * p) * (2.0 * first + second))
    if tl.min(order) < ORDER:  # A_{j-1} = 1 / (2j / x + A_j), differentiated
        lowered = slope
        ratio = _ratio_over_x(scale, total, p, q)
        for step in tl.static_range(ORDER):
            ratio = 1.0 / (2.0 * (v - step) + x * (x * ratio))
            lowered = 2.0 * (v - step) * (ratio * ratio) - (x * ratio) * (x * ratio) * lowered
        slope = tl.where(order < ORDER, lowered, slope)
    return slope


@triton.jit
def _elementwise_kernel(nu, x, out, nu_stride, count, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    """One block of values: nu (count,) float64 if ``nu_stride`` is 1, or (1,) if it is 0; x and out (count,)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    order = tl.load(nu + i * nu_stride, mask=i < count, other=ORDER)
    wide = tl.load(x + i, mask=i < count, other=1.0).to(tl.float64)
    v = tl.where(order < ORDER, order + ORDER, order)
    # a power of two keeps sums of squares in range
    one = tl.full((BLOCK,), 1.0, tl.float64)
    scale = tl.where((v > 2.0**500) | (wide > 2.0**500), one * 2.0**-600, one)
    s = tl.sqrt((v * scale) * (v * scale) + (wide * scale) * (wide * scale))
    p = scale / s
    q = (v * scale / s) * (v * scale / s)
    if FUNCTION == "log_iv":
        value = _log_iv(order, v, wide, scale, s, p, q)
    elif FUNCTION == "bessel_ratio":
        value = _bessel_ratio(order, v, wide, scale, s, p, q)
    else:
        value = _bessel_ratio_grad(order, v, wide, scale, s, p, q)
    tl.store(out + i, value.to(out.dtype.element_ty), mask=i < count)


def log_iv(nu: Tensor, x: Tensor) -> Tensor:
    return _elementwise("log_iv", nu, x)


def bessel_ratio(nu: Tensor, x: Tensor) -> Tensor:
    return _elementwise("bessel_ratio", nu, x)


def bessel_ratio_grad(nu: Tensor, x: Tensor) -> Tensor:
    return _elementwise("bessel_ratio_grad", nu, x)


def _elementwise(function: str, nu: Tensor, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    count = x.numel()
    launch = elementwise_launch(chip_of(x.device))
    _elementwise_kernel[(triton.cdiv(count, launch.block),)](
        nu, x, out, int(nu.dim() > 0), count, FUNCTION=function, **launch.options
    )  # fmt: skip
    return out
