"""How an op calls its kernels, which read and write memory: everything PyTorch wraps around a tensor is refused here
or left aside, in one place for all of them."""

import functools
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def calls_kernels(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates what an op of ``torch.ops.ltfast`` runs, before anything else has touched its arguments.

    Autocast is off inside: a kernel chooses the dtypes of its products itself.

    Args:
        op: the function of ``ltfast.ops`` that needs it, for the message.

    Raises:
        NotImplementedError: an argument carries a forward-mode tangent, which the kernel would drop.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*arguments: Any, **options: Any) -> Any:
            refuse_tangents(op, arguments)
            if not torch._C._is_any_autocast_enabled():
                return function(*arguments, **options)
            with torch._C._DisableAutocast():  # of all devices; torch.autocast would take longer than a small batch
                return function(*arguments, **options)

        return guarded

    return decorate


def refuse_tangents(op: str, arguments: Iterable[Any]) -> None:
    """
    Raises:
        NotImplementedError: a tensor, or one in a list, carries a forward-mode tangent.
    """
    if forward_ad._current_level < 0:
        return
    for argument in arguments:
        for value in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(value, Tensor) and has_tangent(value):
                raise NotImplementedError(
                    f"forward-mode derivatives of {op} need the reference: use it inside "
                    "`with ltfast.backend('reference')`"
                )


def run(path: str, backend: str, device: torch.device, *arguments: Any, **options: Any) -> Any:
    """Call a kernel.

    Args:
        path: "folder.function": the function of ``ltfast/ops/folder/backend.py``.
        device: of the arguments; Triton launches on the current device.
        arguments, options: the function's.
    """
    kernel = _find(path, backend)
    if device.type != "cuda":
        return kernel(*arguments, **options)
    with torch.cuda.device(device.index):
        return kernel(*arguments, **options)


@functools.cache
def _find(path: str, backend: str) -> Callable[..., Any]:
    folder, function = path.split(".")
    return getattr(import_module(f"ltfast.ops.{folder}.{backend}"), function)


def is_plain(tensor: Tensor) -> bool:
    """Whether it is memory and nobody watches: no subclass (fake, functional, distributed), no mode, no torch.func,
    no batched gradient (which has no storage), no forward-mode tangent."""
    return (
        type(tensor) is Tensor
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._has_storage(tensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not (forward_ad._current_level >= 0 and has_tangent(tensor))
    )


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation goes through it."""
    if forward_ad._current_level < 0:
        return False
    # in a compiled graph the key that unpack_dual needs is excluded
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return forward_ad.unpack_dual(tensor).tangent is not None
