"""The launch settings of the kernel of ``class_sums``."""

from dataclasses import dataclass

import triton

from ltfast.ops.core.launch import Chip, Launch, register_limit
from ltfast.ops.core.tuned import tunable, warps_and_registers


@dataclass(frozen=True, kw_only=True)
class ClassLaunch(Launch):
    """One program for each class and each block of columns.

    Attributes:
        rows: labels that the program compares at once.
        columns: columns that it adds up, a power of two.
    """

    rows: int
    columns: int


@tunable(warps_and_registers)
def class_launch(width: int, chip: Chip) -> ClassLaunch:
    """The launch for features of ``width`` columns."""
    columns = min(max(triton.next_power_of_2(width), 32), 512)
    num_warps = max(columns // 128, 1)  # 4 columns a thread: 16-byte loads of float32
    # 64 labels without a member cost no more than one; not measured. The registers are counted
    return ClassLaunch(num_warps=num_warps, maxnreg=register_limit(64, chip), rows=64, columns=columns)
