"""The devices and processes of a run."""

import os

import torch
from accelerate import Accelerator

from ltfast.engine.rendezvous import join_group
from ltfast.errors import InputError


def make_accelerator(precision: str, *, deterministic: bool = False) -> Accelerator:
    """The devices and processes of this run, as `accelerate launch` or `torchrun` set them up.

    Args:
        precision: see `RunSettings`.
        deterministic: whether torch must use deterministic algorithms, in this process from now on.

    Raises:
        ValueError: fp16 without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("fp16 needs a GPU; expected fp32 or bf16 on this machine", name="precision")
    torch.backends.cudnn.deterministic = True  # same seed, same machine: same bits
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    join_group()
    # DistributedDataParallel's broadcast_buffers stays on: the checkpoint contains the first process's buffers, so the
    # other processes must train with the same ones, or a resumed run would differ from an uninterrupted one
    # without cpu=True, Accelerate ignores the other processes of torchrun on a machine without a GPU
    return Accelerator(
        cpu=not torch.accelerator.is_available(), mixed_precision="no" if precision == "fp32" else precision
    )
