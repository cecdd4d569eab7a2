"""DSCL's losses as they are published, with every B x M matrix; but without the 1e-12 that the authors add in the
logarithm, which shows in the ninth digit where an anchor is far from every key."""

import torch
from torch import Tensor


def dscl(query: Tensor, key: Tensor, labels: Tensor, queue: Tensor, queue_labels: Tensor, *,
         temperature: float = 0.07, beta: float = 8.0) -> Tensor:  # fmt: skip
    """The decoupled contrastive loss of each anchor, over queries, keys and queue but itself."""
    batch = len(query)
    features = torch.cat([query, key, queue])
    everyone = torch.cat([labels, labels, queue_labels])
    rows = torch.arange(batch, device=query.device)
    logits = query @ features.T / temperature
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    others = torch.ones_like(logits).scatter(1, rows[:, None], 0)
    positive = (labels[:, None] == everyone[None, :]).to(logits.dtype) * others
    weight = beta / (positive.sum(1, keepdim=True) - 1 + 1e-12) * torch.ones_like(logits)
    weight = weight.scatter(1, rows[:, None] + batch, 1.0)
    log_prob = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    weighted = positive * weight
    return -(weighted * log_prob).sum(1) / weighted.sum(1)


def supcon(query: Tensor, key: Tensor, labels: Tensor, queue: Tensor, queue_labels: Tensor, *,
           temperature: float = 0.07) -> Tensor:  # fmt: skip
    """The supervised contrastive loss of each anchor, over queries, keys and queue but itself."""
    logits = query @ torch.cat([query, key, queue]).T / temperature
    itself = torch.eye(len(query), logits.shape[1], dtype=torch.bool, device=query.device)
    log_prob = logits.masked_fill(itself, -torch.inf).log_softmax(1)
    positive = (labels[:, None] == torch.cat([labels, labels, queue_labels])[None, :]) & ~itself
    return -log_prob.where(positive, 0).sum(1) / positive.sum(1)


def pbsd(pooled: Tensor, cropped: Tensor, key: Tensor, queue: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Patch self-distillation of each image, (B, L, D) patches, a patch after the other as the authors have it."""
    loss = torch.zeros(len(key), dtype=key.dtype, device=key.device)
    for c, s in zip(pooled.unbind(1), cropped.unbind(1), strict=True):

        def logits(x: Tensor) -> Tensor:
            return torch.cat([(x * key).sum(1, keepdim=True), x @ queue.T], dim=1) / temperature

        loss = loss - (logits(c).softmax(1).detach() * logits(s).log_softmax(1)).sum(1)
    return loss / pooled.shape[1]
