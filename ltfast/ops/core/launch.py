"""What differs between the GPUs of two makers when a Triton kernel is launched."""

import torch

HIP = torch.version.hip is not None  # AMD's


def register_limit(count: int) -> dict[str, int]:
    """The launch option for at most ``count`` registers a thread; none on AMD's GPUs, whose compiler lacks it.

    With a limit, NVIDIA's compiler takes the registers that it needs. Without one, it rather spills a few than go over
    the next number at which one block fewer runs on a multiprocessor.
    """
    return {} if HIP else {"maxnreg": count}
