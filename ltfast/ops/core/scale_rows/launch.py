"""The launch settings of ``scale_rows_``."""

import functools
from dataclasses import dataclass

import triton

from ltfast.ops.core.launch import Launch


@dataclass(frozen=True, kw_only=True)
class RowLaunch(Launch):
    """One program for each row, which walks over ``block`` columns at a time."""

    block: int


@functools.cache
def row_launch(columns: int) -> RowLaunch:
    """The launch for rows of ``columns`` values."""
    # 16 values a thread at most; not measured
    return RowLaunch(num_warps=8, block=min(max(triton.next_power_of_2(columns), 16), 4096))
