"""Softmax cross-entropy with the checks of a loss: of logits with a shift for each class, and PyTorch's function."""

from torch import Tensor
from torch.nn import functional as F

from ltfast.ops import cross_entropy
from ltfast.ops.core.checks import FLOATS, INTEGERS, check_device


def shifted_cross_entropy(
    logits: Tensor,
    shift: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    names: tuple[str, str] = ("logits", "target"),
) -> Tensor:
    """``cross_entropy(logits + shift, target)`` with the classes in dimension 1, computed by ``ops.cross_entropy``.

    Args:
        logits: (B, C) or (B, C, d1, ...), float32, float64, bfloat16 or float16.
        shift: (C,), added to the logits of each class.
        target: (B,) or (B, d1, ...) integer labels, or probabilities of the logits' shape.
        weight: (C,), the weight of each class, or None.
        label_smoothing: in [0, 1).
        ignore_index: labels with this value are ignored.
        reduction: "mean", "sum" or "none".
        names: names of the logits and the target in error messages.

    Returns:
        A scalar, or the shape of the labels for "none": float32, or float64 for float64 logits. The mean is over the
        labels, weighted as in ``nn.CrossEntropyLoss``.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Out-of-range labels raise on a GPU only
            with ``LTFAST_CHECKS=1``.
    """
    check_scores(logits, target, len(shift), *names)
    if weight is not None and weight.shape != shift.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected ({len(shift)},), one value per class")
    labels = logits.shape[:1] + logits.shape[2:]
    soft = target.is_floating_point()
    if soft and target.requires_grad:
        raise ValueError(f"{names[1]} requires a gradient: the loss is differentiated in the logits only")
    loss = cross_entropy(
        as_rows(logits),
        as_rows(target) if soft else target.flatten(),
        shift,
        weight=weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    return loss.view(labels) if reduction == "none" else loss


def as_rows(x: Tensor) -> Tensor:
    """(B, C, d1, ...) as (B d1 ..., C)."""
    return x if x.dim() == 2 else x.movedim(1, -1).flatten(0, -2)


def label_cross_entropy(
    scores: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    name: str = "target",
) -> Tensor:
    """``cross_entropy`` of scores and integer labels, whose shapes and dtypes were checked before.

    Raises:
        ValueError: a label is out of range, on the CPU; the message calls the labels ``name``.
    """
    try:
        return F.cross_entropy(scores, target.long(), weight=weight, ignore_index=ignore_index, reduction=reduction)
    except IndexError as error:  # PyTorch's message does not name the argument
        raise ValueError(f"{name} has a label out of range: expected labels in [0, {scores.shape[1]})") from error


def check_scores(logits: Tensor, target: Tensor, classes: int, name: str, target_name: str) -> None:
    for what, tensor in ((name, logits), (target_name, target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{what} is a {type(tensor).__name__}: expected a tensor")
    shape = tuple(logits.shape)
    if logits.dim() < 2 or shape[1] != classes:
        raise ValueError(f"{name} has shape {shape}: expected (batch, {classes}, ...), with the classes in dimension 1")
    if 0 in shape:
        raise ValueError(f"{name} has shape {shape}: expected (batch, {classes}, ...) without a dimension of size 0")
    if logits.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {logits.dtype}: expected float32, float64, bfloat16 or float16")
    labels = (shape[0], *shape[2:])
    soft = target.dtype in FLOATS and target.dim() == logits.dim()
    if not soft and target.dtype not in INTEGERS:
        raise TypeError(
            f"{target_name} has dtype {target.dtype} and shape {tuple(target.shape)}: expected integer labels "
            f"{labels}, or floating-point probabilities {shape}"
        )
    if target.shape != (shape if soft else labels):
        expected = f"{shape}, the shape of the {name}" if soft else f"{labels}, one label for each row of the {name}"
        raise ValueError(f"{target_name} has shape {tuple(target.shape)}: expected {expected}")
    check_device(target, logits, target_name)
