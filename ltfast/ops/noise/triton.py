"""The noise inside Triton kernels; ltfast/ops/noise/reference.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.core.launch import chip_of
from ltfast.ops.noise.launch import noise_launch


@triton.jit
def _log2(x, PTX: tl.constexpr):
    """The base-2 logarithm of normal numbers."""
    if PTX:  # one instruction; its error adds up to 1.5e-7 to the noise, counted from NVIDIA's documented bound
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return tl.log2(x)


@triton.jit
def _quantile(half, PTX: tl.constexpr):
    shifted = (half | 0x4B000000).to(tl.float32, bitcast=True)  # 2^23 + half, without a conversion
    rest = shifted * 1.52587890625e-05 - 127.99999237060546875  # (half + 0.5) 2^-16, exact
    u = 1.0 - rest
    x = _log2(rest * u + rest, PTX) * -0.693147181 - 2.6
    p = 1.6844673e-7 * x - 1.3869884e-6
    p = p * x - 2.9936724e-6
    p = p * x + 1.01187332e-4
    p = p * x - 5.50142172e-4
    p = p * x - 2.139863171e-3
    p = p * x + 1.15856440e-1
    p = p * x + 7.19377554e-1
    return tl.minimum(u * p, 1.0)


@triton.jit
def half_normal_block(seed, row, start, PTX: tl.constexpr, BLOCK: tl.constexpr):
    """``|e|`` of one row for the columns [start, start + BLOCK): float32. start and BLOCK are multiples of eight."""
    counter = (start // 8 + tl.arange(0, BLOCK // 8)).to(tl.uint32)
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(seed, counter, zero + row.to(tl.uint32), zero, zero, n_rounds=7)
    word = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return _quantile(tl.join(word & 0xFFFF, word >> 16).reshape(BLOCK), PTX)


@triton.jit
def half_normal_at(seed, row, column, PTX: tl.constexpr):
    """``|e|`` of one element: float32."""
    counter = (column // 8).to(tl.uint32)
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(seed, counter, row.to(tl.uint32), zero, zero, n_rounds=7)
    pair = tl.where(column % 8 < 4, tl.where(column % 4 < 2, w0, w1), tl.where(column % 4 < 2, w2, w3))
    return _quantile(tl.where(column % 2 == 0, pair & 0xFFFF, pair >> 16), PTX)


@triton.jit
def _half_normal_kernel(out, seed, columns, PTX: tl.constexpr, BLOCK: tl.constexpr):
    """A block of columns of one row: out (rows, columns) float32, contiguous; seed (1,) int64."""
    row = tl.program_id(0)
    start = tl.program_id(1) * BLOCK
    column = start + tl.arange(0, BLOCK)
    noise = half_normal_block(tl.load(seed), row, start, PTX, BLOCK)
    tl.store(out + row.to(tl.int64) * columns + column, noise, mask=column < columns)


def half_normal(rows: int, columns: int, seed: Tensor) -> Tensor:
    """What the kernels draw, written out: for tests."""
    out = torch.empty(rows, columns, device=seed.device)
    launch = noise_launch(chip_of(seed.device))
    _half_normal_kernel[(rows, triton.cdiv(columns, launch.block))](out, seed, columns, **launch.options)
    return out
