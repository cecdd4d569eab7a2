"""The launch settings of the kernel of ``log_iv`` and ``bessel_ratio``."""

from dataclasses import dataclass

from ltfast.ops.core.launch import Launch


@dataclass(frozen=True, kw_only=True)
class ElementwiseLaunch(Launch):
    """``block`` values for each program."""

    block: int


# 2 values a thread: the arithmetic is in float64, whose expansion fills the registers; not measured
LAUNCH = ElementwiseLaunch(num_warps=4, block=256)
