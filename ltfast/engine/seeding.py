"""Seeds from the position of the run, so that a checkpoint needs no state of a generator."""

import random

import numpy as np
import torch


def seed_everything(*position: int) -> None:
    """Seed the global generators (random, numpy, torch on every device) from non-negative integers."""
    # the length comes first, because numpy gives (s) and (s, 0) the same state
    seed = int(np.random.SeedSequence((len(position), *position)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # the same for the CPU: manual_seed takes milliseconds to find that there is no other device
        torch.default_generator.manual_seed(seed)
