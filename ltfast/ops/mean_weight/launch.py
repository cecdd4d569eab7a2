"""The launch settings of ``mean_weight``."""

from dataclasses import dataclass

from ltfast.ops.core.launch import Launch


@dataclass(frozen=True, kw_only=True)
class CountLaunch(Launch):
    """One program, which walks over ``block`` labels at a time."""

    block: int


LAUNCH = CountLaunch(num_warps=4, block=1024)  # a usual batch in one step; not measured
