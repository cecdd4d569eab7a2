"""The launch settings of the kernels of ``queue_softmax``."""

import functools
from dataclasses import dataclass

import torch
import triton

from ltfast.ops.core.launch import Chip, Launch


@dataclass(frozen=True, kw_only=True)
class TileLaunch(Launch):
    """A tile of products for each step of a program.

    Attributes:
        rows: queries of a tile.
        keys: keys of a tile.
        columns: columns of the features that a program sums up, a power of two.
        wide: whether the features have more columns. Then several programs share them, and each of them computes the
            whole products, ``columns`` at a time.
    """

    rows: int
    keys: int
    columns: int
    wide: bool


@functools.cache
def attend_launch(width: int, compute: torch.dtype, chip: Chip) -> TileLaunch:
    """The launch of the forward pass, for features of ``width`` columns and products of ``compute``.

    The tiles stay in registers, by count: 139 to 248 of them in float32 and bfloat16 at a width of 128 (sm_90).
    """
    wide = width > 128
    if compute.itemsize == 2:
        rows, keys = (64, 32) if wide else (128, 64)
    elif compute == torch.float32:
        rows, keys = (64, 32) if wide else (32, 32)
    else:
        rows, keys = (16, 16) if wide else (32, 16)
    columns = max(triton.next_power_of_2(width), 16) if not wide else 64 if compute.itemsize == 2 else 32
    num_warps = 4 if chip.maker == "amd" else 8  # AMD's warps have 64 threads; not measured
    return TileLaunch(num_warps=num_warps, rows=rows, keys=keys, columns=columns, wide=wide)


@functools.cache
def key_gradient_launch(width: int, compute: torch.dtype, chip: Chip) -> TileLaunch:
    """The launch of the gradient in the keys, for features of ``width`` columns and arithmetic in ``compute``."""
    attend = attend_launch(width, compute, chip)
    columns = min(attend.columns, 64)
    keys = 16 if compute == torch.float64 else 32  # counted: larger tiles spill; the speed is not measured
    return TileLaunch(num_warps=attend.num_warps, rows=16, keys=keys, columns=columns, wide=width > columns)


def split_count(programs: int, columns: int, keys: int, chip: Chip) -> int:
    """The number of parts into which the keys are split, so that ``programs`` programs for each part fill the chip.

    Args:
        programs: programs of one part.
        columns: the number of keys.
        keys: keys of a tile.
    """
    if chip.multiprocessors == 0:
        return max(min(2, columns // (2 * keys)), 1)  # the interpreter: enough to test the merging
    # Two programs for each multiprocessor hide each other's waiting, and four tiles fill a program's pipeline; neither
    # is measured. The merging kernel holds 1024 parts.
    return max(min(2 * chip.multiprocessors // programs, columns // (4 * keys), 1024), 1)


@dataclass(frozen=True, kw_only=True)
class MergeLaunch(Launch):
    """One program for each query merges ``splits`` parts of ``width`` columns, both powers of two."""

    splits: int
    width: int


@functools.cache
def merge_launch(splits: int, width: int) -> MergeLaunch:
    """The launch that merges the parts."""
    # not measured
    return MergeLaunch(num_warps=4, splits=triton.next_power_of_2(splits), width=triton.next_power_of_2(width))
