"""Seeds derived from several numbers, and a block of code run under one."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random import mtrand


def derive_seed(*keys: int) -> int:
    """A 63-bit seed that depends on every one of the non-negative integers `keys` and on their order."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(*keys: int) -> Iterator[None]:
    """Seed the global generators of `random`, numpy and torch (CPU) from `keys`, and put them back afterwards."""
    seed = derive_seed(*keys)
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    # exchanged, not copied and restored: that would take longer than the other two together
    numpy_generator = mtrand.get_bit_generator()
    try:
        random.seed(seed)
        mtrand.set_bit_generator(np.random.PCG64(seed))
        # not torch.manual_seed: that would reseed the GPU's generator too, which is the model's
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        mtrand.set_bit_generator(numpy_generator)
        torch.set_rng_state(torch_state)
