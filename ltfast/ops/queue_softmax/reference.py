"""The definition in plain PyTorch, with its B x M matrix."""

import torch
from torch import Tensor

from ltfast.ops.fused_loss import accumulator


def queue_softmax(
    queries: Tensor, keys: Tensor, temperature: float, valid: int, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = accumulator(queries.dtype)
    with torch.autocast(queries.device.type, enabled=False):
        q, k = queries.to(dtype), keys[:valid].to(dtype)
        logits = q @ k.T / temperature
        if exclude is not None:
            logits = logits.masked_fill(torch.arange(valid, device=q.device) == exclude[:, None], -torch.inf)
        alone = logits.isneginf().all(1)  # rows without keys: logsumexp would have NaN gradients there
        lse = logits.masked_fill(alone[:, None], 0).logsumexp(1)
        p = (logits - lse[:, None]).exp()
        return lse.masked_fill(alone, -torch.inf), p @ k
