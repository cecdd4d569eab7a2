"""Communication between the processes of ``torch.distributed``. Without it, or with one process, nothing is sent."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed

from ltfast.ops.core.torch_internals import compiled_gather, has_tangent, in_transform


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if world_size() > 1 else 0


def gather(tensor: Tensor) -> Tensor:
    """The rows of all processes, in the order of the ranks; each process contributes equally many. Gradients return to
    the process whose row it is."""
    if world_size() == 1:
        return tensor
    if torch.compiler.is_compiling():  # the compiler cannot see the other processes
        return compiled_gather(tensor)
    _refuse_transforms(tensor)
    if tensor.requires_grad and torch.is_grad_enabled():
        return _Gather.apply(tensor)
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_together(*tensors: Tensor) -> list[Tensor]:
    """``gather`` of several tensors, of any dtypes, in one exchange and without gradients."""
    processes = world_size()
    if processes == 1:
        return list(tensors)
    blocks = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    everyone = gather(torch.cat(blocks)[None]).split([len(block) for block in blocks], dim=1)
    return [
        parts.contiguous().view(tensor.dtype).view(processes * len(tensor), *tensor.shape[1:])
        for parts, tensor in zip(everyone, tensors, strict=True)
    ]


def hand_back(rows: Tensor) -> Tensor:
    """Exchange rows of the joined batch, (W B, ...): each of the W processes receives its own rows from all of them,
    (W, B, ...). Gradients return to the process that sent the row."""
    processes = world_size()
    if processes > 1:
        _refuse_transforms(rows)
        received = torch.empty_like(rows, memory_format=torch.contiguous_format)
        if rows.requires_grad and torch.is_grad_enabled():
            from torch.distributed.nn.functional import all_to_all_single

            rows = all_to_all_single(received, rows.contiguous())
        else:
            distributed.all_to_all_single(received, rows.contiguous())
            rows = received
    return rows.view(processes, len(rows) // processes, *rows.shape[1:])


def class_ranges(num_classes: int) -> list[range]:
    """The classes of each process: consecutive equal shares. If they cannot be equal, the first ones are larger by 1.

    Raises:
        ValueError: there are fewer classes than processes.
    """
    processes = world_size()
    if num_classes < processes:
        raise ValueError(f"num_classes is {num_classes}: expected at least {processes}, a class a process")
    share, rest = divmod(num_classes, processes)
    starts = [number * share + min(number, rest) for number in range(processes + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def own_share(vector: Tensor) -> Tensor:
    """The values of this process's classes, (C_r,), of a vector of all classes, (C,)."""
    classes = class_ranges(len(vector))[rank()]
    return vector[classes.start : classes.stop]


def _refuse_transforms(tensor: Tensor) -> None:
    """Contiguous memory without wrappers, as the other processes receive it."""
    if torch.compiler.is_compiling():
        return
    if in_transform() or has_tangent(tensor):
        raise NotImplementedError(
            "torch.func transforms and forward-mode derivatives do not reach other processes: use one process"
        )


class _Gather(torch.autograd.Function):
    """torch.distributed.nn's all_gather fails in the backward pass where gloo is the backend of a device alone."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> Tensor:
        return hand_back(incoming).sum(0)
