import pytest
import torch
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Results depend on the number of threads, and small tensors do not benefit from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps global state for the lifetime of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
