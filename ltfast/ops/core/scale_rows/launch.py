"""The launch settings of ``scale_rows_``."""

import functools
from dataclasses import dataclass

import triton

from ltfast.ops.core.launch import Chip, Launch


@dataclass(frozen=True, kw_only=True)
class ScaleLaunch(Launch):
    """Programs that share the blocks of the matrix out among them.

    Attributes:
        block: columns that a program handles at once.
    """

    block: int


@functools.cache
def scale_launch(columns: int) -> ScaleLaunch:
    """The launch for rows of ``columns`` values."""
    # 16 values a thread at most; not measured
    return ScaleLaunch(num_warps=8, block=min(max(triton.next_power_of_2(columns), 16), 4096))


def programs(blocks: int, chip: Chip) -> int:
    """The number of programs for so many blocks. Counted: a multiprocessor holds 8 of 8 warps each, so that all run at
    once, and a factor of 1 costs no more than these."""
    return min(blocks, 8 * max(chip.multiprocessors, 1))
