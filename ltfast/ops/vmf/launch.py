"""The launch settings of the kernels of the von Mises-Fisher losses."""

import functools
from dataclasses import dataclass

import torch
import triton

from ltfast.ops.core.launch import Chip, Launch, register_limit


@dataclass(frozen=True, kw_only=True)
class RatioLaunch(Launch):
    """One program for each row and each ``block`` columns of a matrix."""

    block: int


@functools.cache
def ratio_launch(dtype: torch.dtype) -> RatioLaunch:
    """The launch of the elementwise kernel."""
    return RatioLaunch(num_warps=dtype.itemsize, block=512)  # 4 elements a thread, 2 in float64; not measured


@dataclass(frozen=True, kw_only=True)
class EpilogueLaunch(Launch):
    """One program for each row of a block of classes, which stays in registers.

    Attributes:
        block: classes, a power of two.
        width: columns of the features that the program handles at once, a power of two.
    """

    block: int
    width: int


@functools.cache
def epilogue_launch(classes: int, width: int, dtype: torch.dtype, chip: Chip) -> EpilogueLaunch:
    """The launch for a block of ``classes`` and features of ``width`` columns."""
    double = dtype == torch.float64
    block = max(triton.next_power_of_2(classes), 512 if double else 16)
    num_warps = min(max(block // (64 if double else 256), 1), 16)  # 8 elements a thread, 2 in float64; not measured
    columns = min(max(triton.next_power_of_2(width), 16), 256 * num_warps)
    registers = None if double else register_limit(128, chip)  # counted
    return EpilogueLaunch(num_warps=num_warps, maxnreg=registers, block=block, width=columns)
