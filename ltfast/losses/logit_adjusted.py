from typing import Literal

from torch import Tensor

from ltfast.losses.softmax_loss import SoftmaxLoss
from ltfast.ops.core.checks import check_number
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts


class LogitAdjustedLoss(SoftmaxLoss):
    """Logit-adjusted softmax cross-entropy: ``cross_entropy(logits + tau log(n / sum n), target)``.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10. With ``tau=1`` it is the balanced
    softmax (Ren et al., NeurIPS 2020).

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        tau: strength of the adjustment.
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
    """

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        tau: float = 1.0,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        counts = parse_class_counts(class_counts)
        check_number("tau", tau)
        super().__init__(tau * (counts / counts.sum()).log(), weight, label_smoothing, ignore_index, reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.cross_entropy(logits, target)
