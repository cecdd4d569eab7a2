"""The launch settings of ``half_normal``, which only tests launch."""

import functools
from dataclasses import dataclass

from ltfast.ops.core.launch import Chip, Launch


@dataclass(frozen=True, kw_only=True)
class NoiseLaunch(Launch):
    """One program for each row and each ``block`` columns.

    Attributes:
        block: a multiple of eight.
        ptx: see ``Chip.has_ptx``.
    """

    block: int
    ptx: bool


@functools.cache
def noise_launch(chip: Chip) -> NoiseLaunch:
    return NoiseLaunch(num_warps=4, block=1024, ptx=chip.has_ptx)  # not measured
