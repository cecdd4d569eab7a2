"""The launch settings of the kernels of ``patch_roi_pool``."""

from dataclasses import dataclass

import torch
import triton

from ltfast.ops.core.launch import Chip, Launch, register_limit
from ltfast.ops.core.tuned import tunable, warps_and_registers


@dataclass(frozen=True, kw_only=True)
class TileLaunch(Launch):
    """A product of the weights of the boxes in a tile of pixels with the features there.

    Attributes:
        boxes: boxes of a program.
        rows, columns: pixels of a tile, down and across.
        channels: channels of a program.
    """

    boxes: int
    rows: int
    columns: int
    channels: int


@tunable(warps_and_registers)
def tile_launch(width: int, dtype: torch.dtype, chip: Chip) -> TileLaunch:
    """The launch for feature maps ``width`` pixels across."""
    columns = min(triton.next_power_of_2(width), 32)
    rows = 32 // columns  # counted: with more pixels at once, the forward pass runs out of registers
    channels = 32 if dtype == torch.float64 else 64  # not measured
    registers = register_limit(255, chip)  # counted
    # 16 boxes are the smallest side of a product
    return TileLaunch(num_warps=4, maxnreg=registers, boxes=16, rows=rows, columns=columns, channels=channels)
