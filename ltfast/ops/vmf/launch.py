"""The launch settings of the kernels of the von Mises-Fisher losses."""

import functools
from dataclasses import dataclass

import torch
import triton

from ltfast.ops.bessel.debye import ORDER_SINGLE
from ltfast.ops.core.launch import Chip, Launch, register_limit, vector_width
from ltfast.ops.core.tuned import tunable, warps_and_registers


@dataclass(frozen=True, kw_only=True)
class RatioLaunch(Launch):
    """One program for each ``rows`` rows and ``block`` columns of a matrix."""

    rows: int
    block: int


@functools.cache
def ratio_launch(dtype: torch.dtype) -> RatioLaunch:
    """The launch of the elementwise kernel."""
    # 4 elements a thread, 2 in float64, of 8 rows, so that what belongs to a class is computed once for 8; not measured
    # In float64, 8 warps would spill on gfx942 (counted).
    return RatioLaunch(num_warps=4, rows=8, block=2048 // dtype.itemsize)


@dataclass(frozen=True, kw_only=True)
class EpilogueLaunch(Launch):
    """Programs that walk over the rows of a block of classes, each of which stays in registers.

    Attributes:
        align: divides the number of classes: the elements of one load.
        block: classes, a power of two.
        width: columns of the features that the program handles at once, a power of two.
    """

    align: int
    block: int
    width: int


@tunable(warps_and_registers)
def epilogue_launch(classes: int, width: int, dtype: torch.dtype, chip: Chip) -> EpilogueLaunch:
    """The launch for a block of ``classes`` and features of ``width`` columns."""
    double = dtype == torch.float64
    block = max(triton.next_power_of_2(classes), 512 if double else 16)
    low = width / 2 - 1 < ORDER_SINGLE  # the recurrence takes more registers
    elements = 2 if double else 4 if low else 8  # of a thread; without spills, counted
    num_warps = min(max(block // (32 * elements), 1), 16)
    if double and low and chip.maker == "amd":  # with 8 warps up to 113 registers spill, with 4 scalar ones; counted
        num_warps = 2
    columns = min(max(triton.next_power_of_2(width), 16), 256 * num_warps)
    # 128 is as many as 16 warps can have, and float64 spills a few of them; counted
    registers = register_limit(255 if double and num_warps <= 8 else 128, chip)
    align = vector_width(dtype, classes)
    return EpilogueLaunch(num_warps=num_warps, maxnreg=registers, align=align, block=block, width=columns)


def epilogue_programs(rows: int, launch: EpilogueLaunch, chip: Chip) -> int:
    """The programs of a launch: as many as the chip runs at once, so that each computes what belongs to a class once.

    In the interpreter, two.
    """
    together = max(16 // launch.num_warps, 1)  # on a multiprocessor: 16 warps of 128 registers; counted
    return min(rows, max(chip.multiprocessors * together, 2))
