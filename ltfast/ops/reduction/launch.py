"""The launch settings of the reduction."""

from dataclasses import dataclass

from ltfast.ops.core.launch import Launch


@dataclass(frozen=True, kw_only=True)
class CountLaunch(Launch):
    """One program, which walks over ``block`` labels at a time."""

    block: int


LAUNCH = CountLaunch(num_warps=4, block=1024)  # 8 labels a thread; not measured

# Inside a row's kernel. Each program reads all labels, rows x rows reads in total: 8 KiB a program at most, from the L2
# cache. The last program reads all losses: 16 KiB at most. Where separate launches become faster is not measured.
MOST_COUNTED = 1024  # rows
MOST_ADDED = 4096  # rows
LABELS = 256  # read at once: 8 a thread of a program with one warp, the smallest; not measured
LOSSES = 512  # read at once: 16 a thread of such a program; not measured
