"""Softmax cross-entropy of logits with a shift for each class, in all shapes of ``nn.CrossEntropyLoss``."""

from torch import Tensor

from ltfast.losses.rows import rows_of
from ltfast.ops import cross_entropy


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
        logits: (B, C) or (B, C, d1, ...), float32, float64, bfloat16 or float16. B and d1, ... may be 0.
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
    rows = rows_of(logits, target, len(shift), names=names)
    loss = cross_entropy(
        rows.logits,
        rows.target,
        shift,
        weight=weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    return rows.in_shape(loss, reduction)
