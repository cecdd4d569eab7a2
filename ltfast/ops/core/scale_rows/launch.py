"""The launch settings of ``scale_rows_``."""

import functools
from dataclasses import dataclass

import triton

from ltfast.ops.core.launch import Chip, Launch


@dataclass(frozen=True, kw_only=True)
class ScaleLaunch(Launch):
    """Programs that each take every n-th row.

    Attributes:
        block: columns that a program handles at once.
    """

    block: int


@functools.cache
def scale_launch(columns: int) -> ScaleLaunch:
    """The launch for rows of ``columns`` values."""
    block = min(max(triton.next_power_of_2(columns), 16), 4096)
    # 8 values a thread, one 16-byte access of bfloat16, and 16 in a long row; not measured
    return ScaleLaunch(num_warps=min(max(block // 256, 1), 8), block=block)


def programs(rows: int, chip: Chip) -> int:
    """The number of programs for so many rows. Counted: 8 of 8 warps fill a multiprocessor, so that all run at once. A
    factor of 1 costs no more than their start."""
    return min(rows, 8 * max(chip.multiprocessors, 1))
