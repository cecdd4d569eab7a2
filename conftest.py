"""Skips tests and benchmarks marked ``gpu`` on machines without a CUDA device."""

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()


def pytest_collection_modifyitems(items):
    if not HAS_CUDA:
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_report_header():
    return f"devices: {'cuda' if HAS_CUDA else 'cpu'}; torch {torch.__version__}"
