"""The launch settings of the kernels of ``agcl``."""

import functools
from dataclasses import dataclass

import torch
import triton

from ltfast.ops.core.launch import Chip, Launch, register_limit


@dataclass(frozen=True, kw_only=True)
class RowLaunch(Launch):
    """One program for each row.

    Attributes:
        block: columns that the program handles at once, a power of two.
        one_block: whether a block holds the row. Then the row is read once, and stays in registers.
    """

    block: int
    one_block: bool


@functools.cache
def row_launch(classes: int, acc: torch.dtype, chip: Chip) -> RowLaunch:
    """The launch for rows of ``classes`` logits and arithmetic in ``acc``."""
    # counted: a longer row spills at 16 elements a thread. Not measured: where two reads become faster than one
    one_block = classes <= (8192 if acc == torch.float32 else 2048)
    block = max(triton.next_power_of_2(classes), 16) if one_block else 2048
    num_warps = max(block // 512, 1)  # 16 elements a thread; not measured
    registers = None
    if acc == torch.float32:  # counted; float64 needs no limit
        registers = register_limit(168 if num_warps < 4 else 128, chip)
    return RowLaunch(num_warps=num_warps, maxnreg=registers, block=block, one_block=one_block)


@dataclass(frozen=True, kw_only=True)
class ShareLaunch(Launch):
    """One program for each row of a share of the classes (and, for the gradient, each block of its columns)."""

    block: int


SHARE_LAUNCH = ShareLaunch(num_warps=4, block=2048)  # not measured; counted: no spills
