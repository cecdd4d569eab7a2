"""The noise inside Triton kernels; ltfast/ops/noise/reference.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.noise.launch import LAUNCH


@triton.jit
def half_normal_block(seed, row, start, BLOCK: tl.constexpr):
    """``|e|`` of one row for the columns [start, start + BLOCK): float32. start and BLOCK are multiples of four."""
    counter = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(seed, counter, zero + row.to(tl.uint32), zero, zero)
    word = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(BLOCK)
    u = (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    below = (1.0 - u) * (1.0 + u)
    x = -tl.log(tl.maximum(below, 0.0053922)) - 2.6
    p = 1.6844673e-7 * x - 1.3869884e-6
    p = p * x - 2.9936724e-6
    p = p * x + 1.01187332e-4
    p = p * x - 5.50142172e-4
    p = p * x - 2.139863171e-3
    p = p * x + 1.15856440e-1
    p = p * x + 7.19377554e-1
    return tl.minimum(u * p, 1.0)


@triton.jit
def _half_normal_kernel(out, seed, columns, BLOCK: tl.constexpr):
    """A block of columns of one row: out (rows, columns) float32, contiguous; seed (1,) int64."""
    row = tl.program_id(0)
    start = tl.program_id(1) * BLOCK
    column = start + tl.arange(0, BLOCK)
    noise = half_normal_block(tl.load(seed), row, start, BLOCK)
    tl.store(out + row.to(tl.int64) * columns + column, noise, mask=column < columns)


def half_normal(rows: int, columns: int, seed: Tensor) -> Tensor:
    """What the kernels draw, written out: for tests."""
    out = torch.empty(rows, columns, device=seed.device)
    _half_normal_kernel[(rows, triton.cdiv(columns, LAUNCH.block))](out, seed, columns, **LAUNCH.options)
    return out
