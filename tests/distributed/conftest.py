import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_random_numbers():
    print(f"torch.manual_seed({torch.seed()})")  # shown if a test fails
