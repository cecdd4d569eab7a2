"""Votes of the processes: if one process wants to stop or to write a checkpoint, all do so at the same step."""

import torch
from accelerate import Accelerator
from accelerate.utils import reduce

VOTE_STEPS = 10


def any_process(wish: bool, step: int, accelerator: Accelerator) -> bool:
    """Whether a process has a wish after this step of an epoch. All processes must call it.

    A single process gets its wish at any step. Several processes vote at every `VOTE_STEPS`-th step only, because a
    vote waits for the slowest process.

    Args:
        wish: this process's wish.
        step: optimiser steps done in this epoch.
        accelerator: connects the processes.
    """
    if accelerator.num_processes == 1:
        return wish
    if step % VOTE_STEPS != 0:
        return False
    return int(reduce(torch.tensor(int(wish), device=accelerator.device), "sum")) > 0
