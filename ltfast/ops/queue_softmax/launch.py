"""The launch settings of the kernels of ``queue_softmax``."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import triton

from ltfast.ops.core.launch import Chip, Launch, register_limit
from ltfast.ops.core.tuned import tunable


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


@dataclass(frozen=True, kw_only=True)
class AttendLaunch(TileLaunch):
    """The launch of the forward pass.

    Attributes:
        peeled: whether the tiles that need masks have a loop of their own.
        stages: tiles of keys in shared memory: one is used while the others are loaded.
    """

    peeled: bool
    stages: int


def _attend_tiles(launch: AttendLaunch) -> Iterator[AttendLaunch]:
    for rows, keys, num_warps in ((64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 32, 8), (128, 64, 8), (128, 128, 8)):
        for stages in (2, 3):
            yield replace(launch, rows=rows, keys=keys, num_warps=num_warps, stages=stages, maxnreg=None)
    for num_warps, maxnreg in ((4, 168), (8, 128)):
        yield replace(launch, num_warps=num_warps, rows=16 * num_warps, maxnreg=maxnreg)


@tunable(_attend_tiles)
def attend_launch(width: int, compute: torch.dtype, chip: Chip) -> AttendLaunch:
    """The launch of the forward pass, for features of ``width`` columns and products of ``compute``.

    All reasons are counted, in the machine code of Triton 3.6; no speed is measured. Registers are a thread's.
    """
    columns = max(triton.next_power_of_2(width), 16)
    whole = functools.partial(AttendLaunch, columns=columns, wide=False)
    if compute.itemsize == 2 and columns <= 128:
        if chip.maker == "amd":
            return whole(num_warps=4, rows=128, keys=64, peeled=True, stages=2)
        # sm_90: 168 registers and 64 KiB of shared memory let three blocks share a multiprocessor, and hide each
        # other's waiting. Tiles of 128 rows with 8 warps and at most 128 registers would fit twice, but there the
        # compiler waits after every warpgroup product, and spills where keys are excluded. With sm_80 the queries take
        # registers too: 235, two blocks.
        limit = 168 if _warpgroups(chip) else None
        return whole(num_warps=4, maxnreg=limit, rows=64, keys=64, peeled=True, stages=3)
    # For whole rows of more columns a loop of its own for the masks costs spills, or waiting after every product.
    if compute.itemsize == 2 and columns == 256 and chip.maker == "nvidia":
        # sm_90: up to 255 registers, 128 KiB. With sm_80 and sm_100, tiles of this size spill.
        rows, keys = (128, 64) if chip.capability == 90 else (64, 32)
        return whole(num_warps=8, rows=rows, keys=keys, peeled=False, stages=2)
    if compute.itemsize == 2 and columns == 512 and chip.capability in (80, 90, 100):
        # The 8 warps share the columns. 100 to 161 KiB of shared memory, which other chips do not have.
        return whole(num_warps=8, rows=64, keys=32, peeled=False, stages=2)
    if compute == torch.float32 and columns <= 128:
        # sm_90: warpgroup products, 255 registers, 176 KiB. With sm_80 tiles of this size spill.
        rows = 128 if chip.capability == 90 and columns == 128 else 32
        stages = 2 if rows == 128 else 3
        return whole(num_warps=_warps(chip), rows=rows, keys=32, peeled=False, stages=stages)
    if compute == torch.float64 and columns <= 128:
        return whole(num_warps=_warps(chip), rows=32, keys=16, peeled=False, stages=3)
    # The rows do not fit: float32 and float64 of more than 128 columns, and half precision of more than 128 on AMD's
    # chips and of more than 256 on NVIDIA's with less shared memory.
    rows, keys = (16, 16) if compute == torch.float64 else (64, 32)
    columns = 64 if compute.itemsize == 2 else 32
    return AttendLaunch(
        num_warps=_warps(chip), rows=rows, keys=keys, columns=columns, wide=True, peeled=False, stages=3
    )


def _key_gradient_tiles(launch: TileLaunch) -> Iterator[TileLaunch]:
    for rows, keys, num_warps in itertools.product((16, 32, 64), (32, 64, 128), (4, 8)):
        yield replace(launch, rows=rows, keys=keys, num_warps=num_warps)


@tunable(_key_gradient_tiles)
def key_gradient_launch(width: int, compute: torch.dtype, chip: Chip) -> TileLaunch:
    """The launch of the gradient in the keys, for features of ``width`` columns and products of ``compute``."""
    columns = max(triton.next_power_of_2(width), 16)
    if compute == torch.bfloat16:
        # Counted, without spills: up to 128 columns all products are computed once. With sm_90, two blocks share a
        # multiprocessor. Tiles of 64 queries spill with sm_80 and on AMD's chips, and wide ones with sm_80.
        wide = width > 128
        rows = 64 if _warpgroups(chip) and not wide else 32
        limit = register_limit(255, chip)
        return TileLaunch(num_warps=4, maxnreg=limit, rows=rows, keys=64, columns=64 if wide else columns, wide=wide)
    columns = min(columns, 64 if width <= 128 else 32)
    keys = 16 if compute == torch.float64 else 32  # counted: larger tiles spill; the speed is not measured
    return TileLaunch(num_warps=_warps(chip), rows=16, keys=keys, columns=columns, wide=width > columns)


def _warps(chip: Chip) -> int:
    return 4 if chip.maker == "amd" else 8  # AMD's warps have 64 threads; not measured


def _warpgroups(chip: Chip) -> bool:
    """Whether four warps multiply together, with an operand in shared memory."""
    return 90 <= chip.capability < 120


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
    """One program for each query merges its parts, ``parts`` at a time.

    Attributes:
        splits: the number of parts, or more, a power of two.
        parts: a power of two.
        width: the columns of a part, or more, a power of two.
    """

    splits: int
    parts: int
    width: int


@functools.cache
def merge_launch(splits: int, width: int) -> MergeLaunch:
    """The launch that merges the parts."""
    splits, width = triton.next_power_of_2(splits), triton.next_power_of_2(width)
    # 2048 numbers, 16 for each thread, are loaded at once, so that a program waits for memory less often; not measured
    return MergeLaunch(num_warps=4, splits=splits, parts=min(splits, max(2048 // width, 1)), width=width)
