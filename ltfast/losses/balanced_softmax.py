from typing import Literal

from torch import Tensor

from ltfast.losses.logit_adjusted import LogitAdjustedLoss
from ltfast.ops.core.class_counts import ClassCounts


class BalancedSoftmaxLoss(LogitAdjustedLoss):
    """Balanced softmax cross-entropy of logits: ``cross_entropy(logits + log n, target)``.

    Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020. It equals
    ``LogitAdjustedLoss`` with ``tau=1``: the sum of the counts cancels in the softmax.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        weight: (C,), floating-point, the weight of each class as in ``nn.CrossEntropyLoss``; None weights all classes
            alike.
        label_smoothing: in [0, 1), as in ``nn.CrossEntropyLoss``.
        ignore_index: labels (not probabilities) with this value are ignored: their loss is 0 for "none", and the mean
            excludes them.
        reduction: "mean", "sum" or "none". With weights, the mean over labels divides by the sum of their weights.

    Shapes: logits (B, C) or (B, C, d1, ...), any float dtype; target (B,) or (B, d1, ...), integer labels, or
    probabilities of the logits' shape. The loss is a scalar, or has the shape of the labels for "none"; it is float32
    (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Out-of-range labels raise on a GPU only
            with ``LTFAST_CHECKS=1``.

    Examples:
        >>> loss = BalancedSoftmaxLoss(class_counts=[500, 50, 5])(torch.randn(8, 3), torch.randint(3, (8,)))
    """

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(
            class_counts,
            weight=weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            reduction=reduction,
        )
