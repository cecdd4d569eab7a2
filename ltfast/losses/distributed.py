"""What losses need of ``torch.distributed``; without it, or with one process, nothing happens."""

import torch
from torch import Tensor, distributed


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if world_size() > 1 else 0


def gather(tensor: Tensor) -> Tensor:
    """The rows of all processes, in their order; as many of each. Gradients go back to where the rows came from."""
    if world_size() == 1:
        return tensor
    if tensor.requires_grad and torch.is_grad_enabled():
        from torch.distributed.nn.functional import all_gather  # not in every build of torch

        return torch.cat(all_gather(tensor))
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
