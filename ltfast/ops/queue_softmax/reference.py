"""The definition in plain PyTorch, with its B x M matrix."""

import torch
from torch import Tensor

from ltfast.ops.core.tensors import accumulator


def queue_softmax(
    queries: Tensor, keys: Tensor, temperature: float, valid: Tensor | None, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = accumulator(queries.dtype)
    with torch.autocast(queries.device.type, enabled=False):
        q, k = queries.to(dtype), keys.to(dtype)
        column = torch.arange(len(k), device=q.device)
        if valid is not None:
            k = k.where((column < valid)[:, None], 0)
        logits = q @ k.T / temperature
        if valid is not None:
            logits = logits.masked_fill(column >= valid, -torch.inf)
        if exclude is not None:
            logits = logits.masked_fill(column == exclude[:, None], -torch.inf)
        alone = logits.isneginf().all(1)  # rows without keys: logsumexp would have NaN gradients there
        logits = logits.masked_fill(alone[:, None], 0)
        p = logits.softmax(1).masked_fill(alone[:, None], 0)
        return logits.logsumexp(1).masked_fill(alone, -torch.inf), p @ k
