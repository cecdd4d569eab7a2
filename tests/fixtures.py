"""Fixtures of several folders. A conftest.py that imports one runs it for each of its folder's tests."""

import pytest
import torch
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Bits depend on the number of threads, and small tensors gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its state for the life of a process; each run of a test makes its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def fresh_random_numbers():
    """Each test draws new numbers; the seed is shown where it fails."""
    print(f"torch.manual_seed({torch.seed()})")
