"""The launch settings of the kernels over all tensors of a model."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ltfast.ops.core.launch import Chip, Launch
from ltfast.ops.core.tuned import tunable

DIGIT = 8  # bits counted in a pass: Triton's histogram takes time in proportion to its bins
BINS = 1 << DIGIT


@dataclass(frozen=True, kw_only=True)
class UpdateLaunch(Launch):
    """One program for each chunk of ``block`` elements of a tensor."""

    block: int


def _chunks(launch: UpdateLaunch) -> Iterator[UpdateLaunch]:
    for block, num_warps in itertools.product((1024, 2048, 4096, 8192), (4, 8)):
        yield replace(launch, block=block, num_warps=num_warps)


@tunable(_chunks)
def update_launch(chip: Chip) -> UpdateLaunch:
    """The launch of the kernels that update the importance."""
    # counted: 128-bit loads, 32 registers, 8 blocks a multiprocessor (sm_90); the speed is not measured
    return UpdateLaunch(num_warps=8, block=2048)


@dataclass(frozen=True, kw_only=True)
class CountLaunch(Launch):
    """One program for each chunk of ``tiles`` times ``block`` elements, whose digits it counts into ``bins``."""

    block: int
    tiles: int
    bins: int

    @property
    def chunk(self) -> int:
        """Elements of a program."""
        return self.block * self.tiles


def _tiles(launch: CountLaunch) -> Iterator[CountLaunch]:
    for block, tiles, num_warps in itertools.product((1024, 2048, 4096), (4, 16, 64), (4, 8)):
        yield replace(launch, block=block, tiles=tiles, num_warps=num_warps)


@tunable(_tiles)
def count_launch(chip: Chip) -> CountLaunch:
    """The launch of the kernel that counts digits."""
    # 16 tiles, so that a program adds its counts to the others' once in 32768 elements; not measured
    return CountLaunch(num_warps=8, block=2048, tiles=16, bins=BINS)


@dataclass(frozen=True, kw_only=True)
class SelectLaunch(Launch):
    """One program finds one of the ``bins``."""

    bins: int


SELECT = SelectLaunch(num_warps=4, bins=BINS)  # not measured


def passes(dtype: torch.dtype) -> int:
    """The number of digits of a value."""
    return 8 * dtype.itemsize // DIGIT
