"""The launch settings of ``half_normal``, which only tests launch."""

from dataclasses import dataclass

from ltfast.ops.core.launch import Launch


@dataclass(frozen=True, kw_only=True)
class NoiseLaunch(Launch):
    """One program for each row and each ``block`` columns."""

    block: int


LAUNCH = NoiseLaunch(num_warps=4, block=1024)  # not measured
