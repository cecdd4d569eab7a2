import pytest
import torch
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Bits depend on the number of threads; the child processes of these tests have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
