"""Seeds derived from several numbers, and a block of code run under one."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch
from numpy.random import mtrand


def derive_seed(purpose: str, *keys: int) -> int:
    """A 63-bit seed that depends on the purpose and on every one of the integers `keys` and their order.

    Not numpy's SeedSequence: to that, keys that differ in zeros at the end are the same.
    """
    text = " ".join([purpose, *map(str, keys)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of `random`, numpy and torch (CPU), and put them back afterwards."""
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
