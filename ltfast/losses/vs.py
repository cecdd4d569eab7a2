from typing import Literal

from torch import Tensor

from ltfast.losses.rows import check_scores
from ltfast.losses.softmax_loss import SoftmaxLoss
from ltfast.ops.core.checks import check_number
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts


class VSLoss(SoftmaxLoss):
    """Vector-scaling loss of logits: ``cross_entropy(logits * (n / n_max)^gamma + tau log(n / sum n), target)``.

    Kini et al., "Label-Imbalanced and Group-Sensitive Classification under Overparameterization", NeurIPS 2021, with
    the parameters of its authors' code. ``gamma=0`` leaves the logit-adjusted loss, and ``tau=0`` that of
    class-dependent temperatures (Ye et al., 2020).

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        gamma: exponent of the factors of the logits, 0 or more.
        tau: strength of the additive adjustment.
        weight: (C,), floating-point, the weight of each class as in ``nn.CrossEntropyLoss``; None weights all classes
            alike. The attribute ``weight`` can be replaced between steps (deferred re-weighting).
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
        >>> loss = VSLoss(class_counts=[500, 50, 5])(torch.randn(8, 3), torch.randint(3, (8,)))
    """

    factor: Tensor

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        gamma: float = 0.3,
        tau: float = 1.0,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        counts = parse_class_counts(class_counts)
        check_number("gamma", gamma, at_least=0)
        check_number("tau", tau)
        super().__init__(tau * (counts / counts.sum()).log(), weight, label_smoothing, ignore_index, reduction)
        self.register_buffer("factor", ((counts / counts.max()) ** gamma).float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_scores(logits, target, self.num_classes, *self.names)
        # the product is in the dtype of the arithmetic: float32 for half precision
        return self.cross_entropy(logits * self.factor.view(-1, *[1] * (logits.dim() - 2)), target)
