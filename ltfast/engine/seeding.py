"""Randomness as a function of where the run is, so that a checkpoint needs no generator's state."""

import random

import numpy as np
import torch


def seed_everything(*position: int) -> None:
    """Seed the global generators (random, numpy, torch on every device) from non-negative integers."""
    # the length comes first: numpy takes (s) and (s, 0) for the same
    seed = int(np.random.SeedSequence((len(position), *position)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # the same for the CPU alone: manual_seed takes milliseconds to find that there is nothing else
        torch.default_generator.manual_seed(seed)
