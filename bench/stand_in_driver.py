"""Launches of Triton kernels for a GPU that is not here: compiled as the GPU would have them, and not run.

Inside `launches_on` and `FakeTensorMode`, launchers take `torch.empty(..., device="cuda")` for a tensor on the GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ltfast.ops.reduction import counter

MULTIPROCESSORS = 132  # of an H100 or H200


@dataclass(frozen=True)
class Launch:
    kernel: JITFunction
    arguments: dict[str, Any]  # what the launcher passed by place, by name
    options: dict[str, Any]  # what it passed by name: constants, warps and so on
    signature: dict[str, str]  # each argument's type, as Triton specialised it
    compiled: Any  # Triton's CompiledKernel


class _Driver(DriverBase):
    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    @staticmethod
    def is_active() -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_benchmarker(self) -> None:
        return None


class _Pointer:
    """What Triton looks at in a tensor: its dtype, the alignment of its address, and the size of its memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        # PyTorch's allocations on a GPU are aligned to 512 bytes; a tensor on the CPU stands for such an allocation
        self.address = tensor.storage_offset() * tensor.element_size()
        self.bytes = tensor.untyped_storage().nbytes()

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        return self.bytes


@contextmanager
def launches_on(target: GPUTarget) -> Iterator[list[Launch]]:
    """Collects the launches of a block of code."""
    launches: list[Launch] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        args = [_Pointer(x) if isinstance(x, Tensor) else x for x in args]
        compiled = compile_only(self, *args, grid=grid, warmup=True, **options)
        arguments = dict(zip(self.arg_names, args, strict=False))
        launches.append(Launch(self, arguments, options, compiled.src.signature, compiled))
        return compiled

    compile_only = JITFunction.run
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS, name="a GPU that is not here")
    stream = SimpleNamespace(device_index=0, cuda_stream=0)
    with (
        mock.patch.object(driver, "_active", _Driver(target)),
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False),
        mock.patch.object(torch.cuda, "current_stream", return_value=stream),
        mock.patch.object(counter, "lasting_zero", lambda device: torch.zeros((), dtype=torch.int32, device=device)),
        mock.patch.object(counter, "_kept", {}),
    ):
        yield launches
