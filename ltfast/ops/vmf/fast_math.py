"""Functions of Triton's kernels. In float32 they use what a GPU computes in one instruction, where its error is known
and small enough; in float64 they are exact to the rounding.

The errors are those of NVIDIA's PTX: 2^-23 of a reciprocal and 2^-22.9 of an inverse square root, both relative; 2^-22
of a base-2 logarithm, absolute for arguments in [0.5, 2] and relative elsewhere. Elsewhere (AMD, Triton's interpreter)
the same functions are Triton's own, which are more exact.
"""

import math

import triton
import triton.language as tl
from triton.language import target_info

from ltfast.ops.bessel.triton import log1p

LN_2, LOG2_E = tl.constexpr(math.log(2)), tl.constexpr(math.log2(math.e))


@triton.jit
def reciprocal(x):
    """1 / x for a normal x up to 2^126."""
    if x.dtype == tl.float32 and target_info.is_cuda():
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def log(x):
    """The logarithm of a normal x, with the error of a base-2 logarithm times log 2 in float32."""
    if x.dtype == tl.float32:
        if target_info.is_cuda():
            return LN_2 * tl.inline_asm_elementwise(
                "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            return tl.log2(x) * LN_2
    else:
        return tl.log(x)


@triton.jit
def exp(x):
    """e^x; 0 where that is no normal number."""
    if x.dtype == tl.float32:
        return tl.exp2(x * LOG2_E)  # `LOG2_E * x` is a constant to the interpreter of Triton 3.9
    else:
        return tl.exp(x)


@triton.jit
def root(x):
    """The square root of x, correctly rounded but for one unit, and its reciprocal; x is normal."""
    if x.dtype == tl.float32:
        inverse = tl.rsqrt(x)
        near = x * inverse
        return tl.fma(tl.fma(-near, near, x), 0.5 * inverse, near), inverse
    else:
        exact = tl.sqrt(x)
        return exact, 1.0 / exact


@triton.jit
def atanh_tail(square):
    """(atanh(y) - y) / y^3 for y^2 = square up to 1 / 9, in float32: a minimax polynomial, exact to 1.5e-7."""
    tail = tl.zeros_like(square) + 0.134257490
    tail = tail * square + 0.141183099
    tail = tail * square + 0.200037803
    return tail * square + 0.333333202


@triton.jit
def log_of_quotient(y, change, inverse):
    """log(q) with a small relative error near q = 1 too, of q = (1 + y) / (1 - y) = 1 + change = 1 / inverse."""
    if y.dtype == tl.float32:
        near = 2.0 * y + 2.0 * y * ((y * y) * atanh_tail(y * y))
        return tl.where(tl.abs(y) < 1 / 3, near, -log(inverse))
    else:
        return log1p(change)
