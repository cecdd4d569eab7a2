"""What one process asks for, and all processes do at the same step: stop the run, or write a checkpoint."""

import torch
from accelerate import Accelerator
from accelerate.utils import reduce

VOTE_STEPS = 10


def any_process(wish: bool, step: int, accelerator: Accelerator) -> bool:
    """Whether a process wishes it after this step of an epoch.

    One process alone gets its wish at any step. Several processes ask each other at every `VOTE_STEPS`-th step only,
    because an exchange waits for the slowest of them; all of them must call it.

    Args:
        wish: of this process.
        step: optimiser steps done in this epoch.
        accelerator: the other processes.
    """
    if accelerator.num_processes == 1:
        return wish
    if step % VOTE_STEPS != 0:
        return False
    return int(reduce(torch.tensor(int(wish), device=accelerator.device), "sum")) > 0
