"""Logits and targets in all shapes of ``nn.CrossEntropyLoss``, as the rows that the ops take."""

from typing import NamedTuple

import torch
from torch import Tensor

from ltfast.ops.core.checks import FLOATS, INTEGERS, check_device


class Rows(NamedTuple):
    """A batch of logits (B, C, d1, ...) with one row for each label.

    Attributes:
        logits: (N, C) with N = B d1 ....
        target: (N,) labels or (N, C) probabilities.
        shape: (B, d1, ...).
    """

    logits: Tensor
    target: Tensor
    shape: torch.Size

    def in_shape(self, loss: Tensor, reduction: str) -> Tensor:
        """The loss of the rows: for "none" in the shape of the labels."""
        return loss.view(self.shape) if reduction == "none" else loss


def rows_of(
    logits: Tensor,
    target: Tensor,
    classes: int,
    *,
    names: tuple[str, str] = ("logits", "target"),
    labels_only: str | None = None,
) -> Rows:
    """Check logits and targets, and flatten them. Arguments and errors: see ``check_scores``."""
    check_scores(logits, target, classes, *names, labels_only=labels_only)
    soft = target.is_floating_point()
    shape = logits.shape[:1] + logits.shape[2:]
    return Rows(as_rows(logits), as_rows(target) if soft else target.flatten(), shape)


def as_rows(x: Tensor) -> Tensor:
    """(B, C, d1, ...) as (B d1 ..., C)."""
    return x if x.dim() == 2 else x.movedim(1, -1).flatten(0, -2)


def check_scores(
    logits: Tensor, target: Tensor, classes: int, name: str, target_name: str, *, labels_only: str | None = None
) -> None:
    """Check logits and targets.

    Args:
        logits: (B, C) or (B, C, d1, ...), float32, float64, bfloat16 or float16. B and d1, ... may be 0.
        target: (B,) or (B, d1, ...) integer labels, or probabilities of the logits' shape.
        classes: C.
        name, target_name: names of the logits and the target in error messages.
        labels_only: why the loss takes no probabilities, and what to do instead; None if it takes them.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """
    for what, tensor in ((name, logits), (target_name, target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{what} is a {type(tensor).__name__}: expected a tensor")
    shape = tuple(logits.shape)
    if logits.dim() < 2 or shape[1] != classes:
        raise ValueError(
            f"{name} has shape {shape}: expected (batch, {classes}) or (batch, {classes}, ...), with a column for each "
            "of the classes in dimension 1"
        )
    if logits.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {logits.dtype}: expected float32, float64, bfloat16 or float16")
    labels = (shape[0], *shape[2:])
    soft = target.dtype in FLOATS and target.dim() == logits.dim()
    if soft and labels_only is not None:
        raise TypeError(
            f"{target_name} has dtype {target.dtype} and shape {tuple(target.shape)}, as probabilities have: expected "
            f"integer labels {labels}. {labels_only}"
        )
    if not soft and target.dtype not in INTEGERS:
        probabilities = "" if labels_only is not None else f", or floating-point probabilities {shape}"
        raise TypeError(
            f"{target_name} has dtype {target.dtype} and shape {tuple(target.shape)}: expected integer labels "
            f"{labels}{probabilities}"
        )
    if target.shape != (shape if soft else labels):
        expected = f"{shape}, the shape of the {name}" if soft else f"{labels}, one label for each row of the {name}"
        raise ValueError(f"{target_name} has shape {tuple(target.shape)}: expected {expected}")
    check_device(target, logits, target_name)
    if soft and target.requires_grad:
        raise ValueError(f"{target_name} requires a gradient: the loss is differentiated in the logits only")
