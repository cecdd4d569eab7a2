import random

import numpy as np
import torch

from ltfast.data.seeding import derive_seed, seeded


def test_every_key_counts():
    keys = [(), (0,), (0, 0), (0, 0, 0), (1,), (1, 0), (0, 1), (10,), (2**32,), (0, 2**32), (1, 2**32), (2**63,)]
    seeds = [derive_seed(purpose, *key) for purpose in ("epoch", "views") for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("views", np.int64(3), 4) == derive_seed("views", 3, 4)


def test_a_seed_stays_what_it_was():
    """A resumed run continues with the random numbers of the interrupted one."""
    assert derive_seed("views", 0, 1) == 319333906713458882


def test_seeded_draws_again_and_restores():
    def draw():
        return random.random(), np.random.random(), torch.rand(()).item()

    with seeded(1):
        first = draw()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with seeded(1):
        assert draw() == first
    with seeded(2):
        assert not set(draw()) & set(first)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
