"""Derives seeds from several integers, and runs a block of code with a given seed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch
from numpy.random import mtrand


def derive_seed(purpose: str, *keys: int) -> int:
    """Derive a 63-bit seed from the purpose and the integers `keys`, whose order matters.

    numpy's SeedSequence is not used, since it ignores trailing zeros of the keys.
    """
    text = " ".join([purpose, *map(str, keys)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of `random`, numpy and torch (CPU), and restore their states afterwards."""
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    # The generator is swapped: saving and restoring its state would take longer than the other two together.
    numpy_generator = mtrand.get_bit_generator()
    try:
        random.seed(seed)
        mtrand.set_bit_generator(np.random.PCG64(seed))
        # torch.manual_seed would also reseed the GPU's generator, which belongs to the model
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        mtrand.set_bit_generator(numpy_generator)
        torch.set_rng_state(torch_state)
