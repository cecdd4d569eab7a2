"""The launch settings of the kernel of ``balanced_bce``."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import triton

from ltfast.ops.core.launch import Chip, Launch, register_limit
from ltfast.ops.core.tuned import tunable


@dataclass(frozen=True, kw_only=True)
class RowLaunch(Launch):
    """One program for each row, which walks over blocks of columns.

    Attributes:
        block: columns that the program handles at once, a power of two.
    """

    block: int


def _blocks(launch: RowLaunch) -> Iterator[RowLaunch]:
    for scale, num_warps, maxnreg in itertools.product((1, 2), (1, 2, 4, 8), (launch.maxnreg, 64, None)):
        yield replace(launch, block=scale * launch.block, num_warps=num_warps, maxnreg=maxnreg)


@tunable(_blocks)
def row_launch(rows: int, classes: int, acc: torch.dtype, chip: Chip, plain: bool) -> RowLaunch:
    """The launch for ``rows`` of ``classes`` logits and arithmetic in ``acc``. ``plain``: labels and no weights."""
    # Counted: a warp executes 140 instructions a row beside 250 in each step of the loop. So a row gets only as many
    # warps as it takes to fill the chip, where 40 fit on a multiprocessor. Not measured: 8 at most, 2 at least.
    share = 40 * max(chip.multiprocessors, 1) // rows
    most = 8 if share >= 8 else 4 if share >= 4 else 2
    # 32 bytes of arithmetic a thread and step: two 16-byte loads of float32, one of bfloat16
    block = min(max(triton.next_power_of_2(classes), 16), most * 1024 // acc.itemsize)
    num_warps = max(block * acc.itemsize // 1024, 1)
    registers = 128 if acc == torch.float64 else 48 if plain else 64  # counted: no spills on any chip
    return RowLaunch(num_warps=num_warps, maxnreg=register_limit(registers, chip), block=block)
