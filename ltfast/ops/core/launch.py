"""What differs between the GPUs of two makers when a Triton kernel is launched."""

import torch

HIP = torch.version.hip is not None  # AMD's


def register_limit(count: int) -> dict[str, int]:
    """The launch option for at most ``count`` registers a thread; none on AMD's GPUs, whose compiler lacks it.

    Without a limit, NVIDIA's compiler may spill a few registers in order to fit one more block on a multiprocessor.
    With a limit, it uses as many as it needs up to there. Each limit in the launch settings is one with which no
    launch of `tests/ops/triton_compile.py` spills; its effect on the speed is not measured.
    """
    return {} if HIP else {"maxnreg": count}
