"""Where there is no GPU, Triton kernels run in Triton's interpreter, and tests marked ``gpu`` skip themselves."""

import os

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton


def pytest_collection_modifyitems(items):
    if not HAS_CUDA:
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_report_header():
    return f"devices: {'cuda' if HAS_CUDA else 'cpu'}; torch {torch.__version__}"
