"""The way from a call of an op to its kernels, which read and write memory. What PyTorch can wrap around a tensor is
refused or switched off here, in one place for all ops."""

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ltfast.ops.core import backends
from ltfast.ops.core.torch_internals import has_tangent, in_autocast, in_forward_mode, in_transform, without_autocast
from ltfast.ops.core.warn import warn_caller


@dataclass(eq=False)
class Kernels:
    """The modules with the kernels of an op. Each is given by a function that imports it when one of its kernels first
    runs.

    Attributes:
        native, triton: import the module of that backend.
        cuda: imports the module of the backend "native" on a GPU; None if the op has no kernels in CUDA C++.
    """

    native: Callable[[], ModuleType]
    triton: Callable[[], ModuleType]
    cuda: Callable[[], ModuleType] | None = None
    _modules: dict[str, ModuleType] = field(default_factory=dict, init=False, repr=False)

    def of(self, backend: str, device: torch.device) -> ModuleType:
        """The module with the kernels of a backend, "native" or "triton", for tensors on a device."""
        name = "cuda" if backend == "native" and device.type == "cuda" else backend
        module = self._modules.get(name)
        if module is None:
            module = self._modules[name] = getattr(self, name)()
        return module


@dataclass(eq=False)
class Op:
    """The record of a function of ``ltfast.ops``.

    Attributes:
        name: the name of the function, for messages.
        reference: its definition in plain PyTorch.
        kernels: the modules with its kernels.
    """

    name: str
    reference: Callable[..., Any]
    kernels: Kernels

    def choose(self, tensor: Tensor, *others: Tensor) -> str:
        """The backend of a call with these tensors: see ``choose``."""
        return choose(self.name, tensor, *others, in_cuda=self.kernels.cuda is not None)

    def resolve(self, device: torch.device) -> str:
        """The backend of a call from inside a custom op: see ``backends.resolve_kernel``."""
        return backends.resolve_kernel(device, in_cuda=self.kernels.cuda is not None)

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function that calls the kernels; see ``kernel_context``. No other code may change its arguments
        before.

        The first argument of the function is a tensor, or a list of tensors, on the device of all arguments.

        Raises:
            NotImplementedError: an argument carries a forward-mode tangent, which the kernel would drop.
        """

        @functools.wraps(function)
        def guarded(*arguments: Any, **options: Any) -> Any:
            refuse_tangents(self.name, arguments)
            first = arguments[0]
            with kernel_context((first if isinstance(first, Tensor) else first[0]).device):
                return function(*arguments, **options)

        return guarded


def choose(op: str, tensor: Tensor, *others: Tensor, in_cuda: bool = False) -> str:
    """The backend of a call of the function ``ltfast.ops.op``: of its kernels, or the reference.

    Raises:
        BackendUnavailableError: an override asks for a backend that cannot run on the tensor's device.
        NotImplementedError: the choice is not the reference, and a transform of torch.func is active or a tensor has a
            forward-mode tangent.
    """
    name = backends.resolve(tensor.device, in_cuda=in_cuda)
    if name == "reference":
        if not backends.is_overridden() and not torch.compiler.is_compiling():
            _warn_once(tensor.device.type)
        return name
    if in_transform():
        raise NotImplementedError(
            f"torch.func transforms of {op} need the reference: use it inside `with ltfast.backend('reference')`"
        )
    if in_forward_mode() and not torch.compiler.is_compiling():
        refuse_tangents(op, (tensor, *others))
    return name


def refuse_tangents(op: str, arguments: Iterable[Any]) -> None:
    """
    Raises:
        NotImplementedError: a tensor, or one in a list, carries a forward-mode tangent.
    """
    if not in_forward_mode():
        return
    for argument in arguments:
        for value in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(value, Tensor) and has_tangent(value):
                raise NotImplementedError(
                    f"forward-mode derivatives of {op} need the reference: use it inside "
                    "`with ltfast.backend('reference')`"
                )


_NOTHING = nullcontext()


def kernel_context(device: torch.device) -> AbstractContextManager[Any]:
    """The context for kernels. Autocast is disabled, because a kernel chooses the dtypes of its products itself. A GPU
    becomes the current device, because Triton launches on that."""
    autocast = in_autocast()
    if device.type != "cuda":
        return without_autocast() if autocast else _NOTHING
    return _without_autocast_on(device) if autocast else torch.cuda.device(device)


@contextmanager
def _without_autocast_on(device: torch.device) -> Any:
    with without_autocast(), torch.cuda.device(device):
        yield


_warned: set[str] = set()


def _warn_once(device_type: str) -> None:
    if device_type not in _warned:
        _warned.add(device_type)
        reason = backends.why_reference(device_type)
        warn_caller(f"ltfast runs its slow plain PyTorch reference on {device_type}: {reason}")
