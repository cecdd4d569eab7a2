"""The launch settings of the kernel of ``log_iv`` and ``bessel_ratio``."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ltfast.ops.core.launch import Chip, Launch
from ltfast.ops.core.tuned import tunable


@dataclass(frozen=True, kw_only=True)
class ElementwiseLaunch(Launch):
    """``block`` values for each program."""

    block: int


def _blocks(launch: ElementwiseLaunch) -> Iterator[ElementwiseLaunch]:
    for block, num_warps in itertools.product((128, 256, 512, 1024), (2, 4, 8)):
        yield replace(launch, block=block, num_warps=num_warps)


@tunable(_blocks)
def elementwise_launch(chip: Chip) -> ElementwiseLaunch:
    """The launch for any number of values."""
    # 2 values a thread: the arithmetic is in float64, whose expansion fills the registers; not measured
    return ElementwiseLaunch(num_warps=4, block=256)
