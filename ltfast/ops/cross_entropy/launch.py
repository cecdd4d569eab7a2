"""The launch settings of the kernel of ``cross_entropy``."""

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
    """

    block: int
    one_block: bool


@tunable(warps_and_registers)
def row_launch(classes: int, acc: torch.dtype, chip: Chip, plain: bool) -> RowLaunch:
    """The launch for rows of ``classes`` logits and arithmetic in ``acc``. ``plain``: labels without smoothing."""
    # Not measured: where two reads become faster than one
    one_block = classes <= (8192 if acc == torch.float32 else 2048)
    block = max(triton.next_power_of_2(classes), 16) if one_block else 2048
    # 32 elements a thread, so that what a thread does once counts little. The shares of the classes stay in registers
    # too: 16 with them, or in float64. Counted: no spills on NVIDIA's chips
    num_warps = max(block // (1024 if plain and acc == torch.float32 else 512), 1)
    registers = 128 if acc == torch.float32 else 255
    return RowLaunch(num_warps=num_warps, maxnreg=register_limit(registers, chip), block=block, one_block=one_block)
