"""Launches without a GPU: launchers run, and their kernels are compiled but not executed.

Triton gets a driver that stands in for a GPU's, and the launchers get fake tensors on ``cuda``. So each kernel has the
signature of a real launch: Triton's own types, its specialisation of integers that are 1 or divisible by 16, alignment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ltfast.ops.queue_softmax import triton as queue_softmax


class Driver(DriverBase):
    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    @classmethod
    def is_active(cls) -> bool:
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


class Pointer:
    """What Triton reads of a tensor: memory from the allocator is aligned, and so is an offset into it or not."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype, self.storage = tensor.dtype, tensor.untyped_storage().nbytes()
        self.offset = tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return self.offset

    def ptr_range(self) -> int:
        return self.storage


@contextmanager
def recorded_launches(target: GPUTarget) -> Iterator[list[tuple[JITFunction, Any]]]:
    """In here tensors are fake, and launches are compiled for the target instead of executed: each adds its kernel, and
    what was compiled of it, to the list. Once a process."""
    launches: list[tuple[JITFunction, Any]] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        args = tuple(Pointer(x) if isinstance(x, Tensor) else x for x in args)
        launches.append((self, run(self, *args, grid=grid, warmup=True, **options)))

    processor = mock.Mock(multi_processor_count=132)
    driver.set_active(Driver(target))
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=processor),
        mock.patch.object(queue_softmax, "_HIP", target.backend == "hip"),
        FakeTensorMode(),
    ):
        yield launches
