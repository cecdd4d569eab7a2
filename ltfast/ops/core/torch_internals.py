"""All private names of PyTorch that ltfast needs, each in a function that says why.

PyTorch may change a private name in any version. ``tests/ops/test_torch_internals.py`` tests each of them and says what
breaks without it. If a name is missing and PyTorch has a public, slower way to the same result, that way is used.
"""

from collections.abc import Collection
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

_any_autocast: Any = getattr(torch._C, "_is_any_autocast_enabled", None)
_no_autocast: Any = getattr(torch._C, "_DisableAutocast", None)
_keeps_graph: Any = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
_graph_task: Any = getattr(torch._C, "_current_graph_task_id", None)
_has_storage: Any = getattr(torch._C, "_has_storage", None)
_flash_attention: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_gpu_attentions: dict[str, Any] = {
    name: getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention", None) for name in ("flash", "cudnn")
}
_foreach_mul: Any = getattr(torch, "_foreach_mul", None)
_foreach_addcmul: Any = getattr(torch, "_foreach_addcmul_", None)
_foreach_copy: Any = getattr(torch, "_foreach_copy_", None)
_DEVICES = ("cpu", "cuda")

BatchNorm = _BatchNorm  # the base of all batch norms, of any dimension, has no public name


def is_plain(tensor: Tensor) -> bool:
    """True for a plain tensor with no dispatch mode or transform active. A subclass (fake, functional, distributed), a
    batched gradient (which has no storage) and a tensor with a forward-mode tangent are not plain."""
    return (
        type(tensor) is Tensor
        and torch._C._len_torch_dispatch_stack() == 0
        and has_storage(tensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not has_tangent(tensor)
    )


def has_storage(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own."""
    if _has_storage is not None:
        return _has_storage(tensor)
    try:
        tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return False
    return True


def is_watched() -> bool:
    """Whether a dispatch mode or a transform of torch.func is active, which intercepts every call."""
    return torch._C._len_torch_dispatch_stack() > 0 or in_transform()


def in_transform() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp) is active."""
    return torch._C._functorch.maybe_current_level() is not None


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of torch.func."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is active, so that a tensor may have a tangent."""
    return forward_ad._current_level >= 0


def has_tangent(tensor: Tensor) -> bool:
    """Whether a tensor has a forward-mode tangent."""
    if forward_ad._current_level < 0:
        return False
    # in a compiled graph the key that unpack_dual needs is excluded
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return forward_ad.unpack_dual(tensor).tangent is not None


def in_autocast() -> bool:
    """Whether autocast is enabled for any device."""
    if _any_autocast is not None:
        return _any_autocast()
    return any(torch.is_autocast_enabled(device) for device in _DEVICES)


def without_autocast() -> AbstractContextManager[Any]:
    """A context in which autocast is disabled. (``torch.autocast`` would take longer than a small batch.)"""
    if _no_autocast is not None:
        return _no_autocast()
    stack = ExitStack()
    for device in _DEVICES:
        stack.enter_context(torch.autocast(device, enabled=False))
    return stack


def below_autograd() -> AbstractContextManager[Any]:
    """A context in which ops bypass autograd and go to their kernels, or to what wraps these."""
    return torch._C._AutoDispatchBelowAutograd()


def keeps_graph() -> bool:
    """Whether the running backward pass keeps its graph for another one (``retain_graph=True``)."""
    return _keeps_graph is None or _keeps_graph()


def in_backward() -> bool:
    """Whether a backward pass is running, which calls a forward pass again where activations are checkpointed. Without
    the private name this is not noticed."""
    return _graph_task is not None and _graph_task() != -1


def version(tensor: Tensor) -> int:
    """The number of times a tensor was changed in place."""
    return tensor._version


def flash_attention(queries: Tensor, keys: Tensor, mask: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Attention on the CPU with the keys as values. No matrix of all products is stored.

    Args:
        queries: (S, 1, B, D), float32 or float64.
        keys: (S, 1, M, D), of that dtype.
        mask: (S, 1, B, M), added to the products, or None.
        temperature: divides the products.

    Returns:
        The log-sum-exp, (S, 1, B), and the mean of the keys, (S, 1, B, D).
    """
    if _flash_attention is not None:
        mean, lse = _flash_attention(queries, keys, keys, attn_mask=mask, scale=1 / temperature)
        return lse, mean
    products = queries @ keys.mT / temperature
    if mask is not None:
        products = products + mask
    return products.logsumexp(-1), products.softmax(-1) @ keys


def gpu_attention(backend: str, queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Attention on a GPU with the keys as values, as `flash_attention` has it on the CPU. PyTorch's public function
    gives no log-sum-exp.

    Args:
        backend: flash or cudnn.
        queries: (S, 1, B, D), float16 or bfloat16.
        keys: (S, 1, M, D), of that dtype.
        temperature: divides the products.

    Returns:
        The log-sum-exp, S x B values in float32, and the mean of the keys, (S, 1, B, D).

    Raises:
        RuntimeError: the backend cannot run here, or this version of PyTorch lacks it.
    """
    attend = _gpu_attentions[backend]
    if attend is None:
        raise RuntimeError(f"this version of PyTorch gives no log-sum-exp of {backend} attention")
    more = () if backend == "flash" else (None, True)  # no bias, but the log-sum-exp
    mean, lse, *_ = attend(queries, keys, keys, *more, scale=1 / temperature)
    return lse, mean


def compiled_gather(tensor: Tensor) -> Tensor:
    """The rows of all processes, for a graph that is being compiled. Gradients return to the owner of the row."""
    from torch.distributed._functional_collectives import all_gather_tensor_autograd

    world: Any = torch.distributed.group.WORLD
    return all_gather_tensor_autograd(tensor.contiguous(), 0, world)


def leaves(tree: Any) -> list[Any]:
    """The leaves of nested tuples, lists and dictionaries."""
    return tree_leaves(tree)


def leave_to_processes(module: nn.Module, names: Collection[str]) -> None:
    """Exclude these parameters and buffers of a module from ``DistributedDataParallel``: each process keeps its own."""
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def foreach_add_squares(totals: list[Tensor], left: list[Tensor], right: list[Tensor]) -> None:
    """``total += (left * right)^2`` for each of the tensors, in few launches, as PyTorch's optimisers compute."""
    if _foreach_mul is None or _foreach_addcmul is None:
        for total, one, other in zip(totals, left, right, strict=True):
            total += (one * other) ** 2
        return
    products = _foreach_mul(left, right)
    _foreach_addcmul(totals, products, products)


def foreach_copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each of the tensors, in few launches."""
    if _foreach_copy is not None:
        _foreach_copy(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
