"""Where there is no GPU, Triton kernels run in Triton's interpreter."""

import os

import torch

from fuzz.report import pytest_terminal_summary  # noqa: F401  (xdist's controller loads no conftest below this one)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    from ltfast.ops.core import backends

    if backends.why_not("triton", torch.device("cpu")) is None:
        from triton_interpreter import patch_once, type_float_arguments

        type_float_arguments()
        patch_once()

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the processes share the cores; tests of threads set their number
