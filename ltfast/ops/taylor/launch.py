"""The launch settings of the kernels over all tensors of a model."""

from dataclasses import dataclass

import torch

from ltfast.ops.core.launch import Launch

DIGIT = 8  # bits counted in a pass: Triton's histogram takes time in proportion to its bins


@dataclass(frozen=True, kw_only=True)
class UpdateLaunch(Launch):
    """One program for each chunk of ``block`` elements of a tensor."""

    block: int


# counted: 128-bit loads, 32 registers, 8 blocks a multiprocessor (sm_90); the speed is not measured
UPDATE = UpdateLaunch(num_warps=8, block=2048)


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


# 16 tiles, so that a program adds its counts to the others' once in 32768 elements; not measured
COUNT = CountLaunch(num_warps=8, block=2048, tiles=16, bins=1 << DIGIT)


@dataclass(frozen=True, kw_only=True)
class SelectLaunch(Launch):
    """One program finds one of the ``bins``."""

    bins: int


SELECT = SelectLaunch(num_warps=4, bins=COUNT.bins)  # not measured


def passes(dtype: torch.dtype) -> int:
    """The number of digits of a value."""
    return 8 * dtype.itemsize // DIGIT
