"""Tensors as the losses need them: the dtype of arithmetic, the places of results, labels as masks, reductions."""

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and losses: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_loss(logits: Tensor, reduction: str) -> Tensor:
    """Where the loss goes: a scalar, or one value a row."""
    shape = logits.shape[:1] if reduction == "none" else ()
    return torch.empty(shape, dtype=accumulator(logits.dtype), device=logits.device)


def empty_gradient(logits: Tensor, with_gradient: bool) -> Tensor:
    """Where a kernel writes the gradient: like the logits and contiguous, or empty where nobody wants it."""
    shape = logits.shape if with_gradient else (0,)
    return torch.empty(shape, dtype=logits.dtype, device=logits.device)


def one_hot(target: Tensor, logits: Tensor) -> Tensor:
    """True in the column of each row's label, (B, C). (``F.one_hot`` reads the labels, which ``vmap`` forbids.)"""
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, target[:, None], True)


def reduce(rows: Tensor, reduction: str, counted: Tensor | None = None) -> Tensor:
    """The loss of each row, their mean or their sum; rows that are not ``counted``, (B,), are 0 and not in the mean."""
    if counted is not None:
        rows = torch.where(counted, rows, 0)
    if reduction == "mean":
        return rows.mean() if counted is None else rows.sum() / counted.sum()
    return rows.sum() if reduction == "sum" else rows


def wants_gradient(logits: Tensor) -> bool:
    """Whether a backward pass may follow."""
    return logits.requires_grad and torch.is_grad_enabled()
