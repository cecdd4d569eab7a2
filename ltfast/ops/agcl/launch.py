"""The launch settings of the kernels of ``agcl``."""

from dataclasses import dataclass

import torch
import triton

from ltfast.ops.core.launch import Chip, Launch, register_limit
from ltfast.ops.core.tuned import tunable, warps_and_registers


@dataclass(frozen=True, kw_only=True)
class RowLaunch(Launch):
    """One program for each row.

    Attributes:
        block: columns that the program handles at once, a power of two.
        one_block: whether a block holds the row. Then the row is read once, and stays in registers.
        ptx: see ``Chip.has_ptx``.
    """

    block: int
    one_block: bool
    ptx: bool


@tunable(warps_and_registers)
def row_launch(classes: int, acc: torch.dtype, chip: Chip) -> RowLaunch:
    """The launch for rows of ``classes`` logits and arithmetic in ``acc``."""
    # A longer row would leave room for one program on a multiprocessor (counted). Not measured: where two reads become
    # faster than one
    one_block = classes <= (8192 if acc == torch.float32 else 2048)
    block = max(triton.next_power_of_2(classes), 16) if one_block else 2048
    # 16 elements a thread. Above 4096 columns 32, so that what a thread does once counts half: 8 warps of 128 registers
    # let two programs share a multiprocessor (counted). Not measured
    num_warps = min(max(block // 512, 1), 8)
    # counted; float64 takes at most 255, and spills without a limit
    most = 255 if acc == torch.float64 else 168 if num_warps < 4 else 128
    registers = register_limit(most, chip)
    return RowLaunch(num_warps=num_warps, maxnreg=registers, block=block, one_block=one_block, ptx=chip.has_ptx)


@dataclass(frozen=True, kw_only=True)
class ShareLaunch(Launch):
    """One program for each row of a share of the classes (and, for the gradient, each block of its columns).

    Attributes:
        block: columns that the program handles at once.
        ptx: see ``Chip.has_ptx``.
    """

    block: int
    ptx: bool


@tunable(warps_and_registers)
def share_launch(chip: Chip) -> ShareLaunch:
    return ShareLaunch(num_warps=4, block=2048, ptx=chip.has_ptx)  # not measured; counted: no spills
