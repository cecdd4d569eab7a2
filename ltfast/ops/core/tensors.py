"""Helpers for tensors of losses: the dtype of the arithmetic, empty results, one-hot masks, reductions, weights."""

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and losses: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_loss(logits: Tensor, reduction: str) -> Tensor:
    """An empty tensor for the loss: a scalar, or one value for each row."""
    shape = logits.shape[:1] if reduction == "none" else ()
    return torch.empty(shape, dtype=accumulator(logits.dtype), device=logits.device)


def empty_gradient(logits: Tensor, with_gradient: bool) -> Tensor:
    """An empty tensor for the gradient: like the logits and contiguous, or without elements if it is not wanted."""
    shape = logits.shape if with_gradient else (0,)
    return torch.empty(shape, dtype=logits.dtype, device=logits.device)


def one_hot(target: Tensor, logits: Tensor) -> Tensor:
    """True in the column of each row's label, (B, C). (``F.one_hot`` reads the labels, which ``vmap`` forbids.)"""
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, target[:, None], True)


def reduce(rows: Tensor, reduction: str, counted: Tensor | None = None) -> Tensor:
    """The losses of the rows, their mean or their sum. Rows that are not ``counted``, (B,), become 0."""
    if counted is not None:
        rows = torch.where(counted, rows, 0)
    if reduction == "mean":
        return rows.mean() if counted is None else rows.sum() / counted.sum()
    return rows.sum() if reduction == "sum" else rows


def mean_weight(weight: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """The weights (C,), scaled so that the mean over the rows that count is the weighted mean over their labels."""
    counted = target != ignore_index
    label = torch.where(counted, target, 0).clamp(0, len(weight) - 1)  # the kernels report labels out of range
    return weight * (counted.sum() / torch.where(counted, weight[label], 0).sum())


def wants_gradient(logits: Tensor) -> bool:
    """Whether a tensor needs a gradient here."""
    return logits.requires_grad and torch.is_grad_enabled()
