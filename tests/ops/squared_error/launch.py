import functools
from dataclasses import dataclass

import triton

from ltfast.ops.core.launch import Launch


@dataclass(frozen=True, kw_only=True)
class RowLaunch(Launch):
    block: int


@functools.cache
def row_launch(classes: int) -> RowLaunch:
    return RowLaunch(num_warps=4, block=min(max(triton.next_power_of_2(classes), 16), 1024))
