"""The launch settings of the kernel of ``balanced_bce``."""

import functools
from dataclasses import dataclass

import torch
import triton

from ltfast.ops.core.launch import Chip, Launch, register_limit


@dataclass(frozen=True, kw_only=True)
class RowLaunch(Launch):
    """One program for each row, which walks over blocks of columns.

    Attributes:
        block: columns that the program handles at once, a power of two.
    """

    block: int


@functools.cache
def row_launch(classes: int, acc: torch.dtype, chip: Chip) -> RowLaunch:
    """The launch for rows of ``classes`` logits and arithmetic in ``acc``."""
    block = min(max(triton.next_power_of_2(classes), 16), 8192 // acc.itemsize)  # 8 KiB of arithmetic; not measured
    num_warps = max(block * acc.itemsize // 1024, 1)  # 32 bytes of arithmetic a thread: two 16-byte loads of float32
    registers = 128 if acc == torch.float64 else 96  # counted
    return RowLaunch(num_warps=num_warps, maxnreg=register_limit(registers, chip), block=block)
