"""The GPU kernel: one program counts the labels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.mean_weight.launch import LAUNCH


@triton.jit
def _mean_weight_kernel(target, weight, rows, ignore_index, BLOCK: tl.constexpr):
    """target (rows,) int64; weight (1,)."""
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        label = tl.load(target + row, mask=row < rows, other=0)
        count += ((row < rows) & (label != ignore_index)).to(tl.int32)
    tl.store(weight, 1.0 / tl.sum(count).to(weight.dtype.element_ty))


def mean_weight(target: Tensor, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """One over the number of labels (B,), int64, that are not ``ignore_index``: one value, infinite where all are."""
    weight = torch.empty((), dtype=dtype, device=target.device)
    _mean_weight_kernel[(1,)](target, weight, len(target), ignore_index, **LAUNCH.options)
    return weight
