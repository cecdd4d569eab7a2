from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.losses.rows import check_scores
from ltfast.losses.softmax_loss import SoftmaxLoss
from ltfast.ops.core.checks import check_number, check_real
from ltfast.ops.core.class_counts import ClassCounts, inverse_effective_numbers, parse_class_counts

LARGEST = 1e30  # logits saturate here in the focal loss, so that finite ones give a finite sum


def effective_number_weights(class_counts: ClassCounts, *, beta: float = 0.9999) -> Tensor:
    """The weight of each class by its effective number of images: ``(1 - beta) / (1 - beta^n)``, scaled to the mean 1.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019. For deferred re-weighting (Cao et
    al., NeurIPS 2019), assign the result to the attribute ``weight`` of a loss after the first epochs.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        beta: in [0, 1); 0 weights all classes alike, and towards 1 the weights become inverse to the counts.

    Returns:
        (C,), float32, on the CPU.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Examples:
        >>> criterion = torch.nn.CrossEntropyLoss(weight=effective_number_weights([500, 50, 5]))
    """
    counts = parse_class_counts(class_counts)
    check_real("beta", beta)
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}: expected a number in [0, 1)")
    inverse = inverse_effective_numbers(counts, beta)
    return (inverse / inverse.mean()).float()


class ClassBalancedLoss(SoftmaxLoss):
    """Class-balanced loss of logits: the cross-entropy or focal loss, weighted by ``(1 - beta) / (1 - beta^n)``.

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019. The weights are those of
    ``effective_number_weights``, with the mean 1. "cross_entropy" is the softmax cross-entropy. "focal" is the paper's
    focal loss, which has a sigmoid for each class: with the weight w_y of the label,
    ``-w_y sum_c (1 - q_c)^gamma log q_c``, where q_c is ``sigmoid(x_c)`` for the label and ``sigmoid(-x_c)`` for the
    other classes. For probabilities, or with label smoothing, the loss is the sum over the classes of the target's
    share times the loss with this class as the label.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        loss: "cross_entropy" or "focal".
        beta: in [0, 1).
        gamma: focusing exponent of "focal", 0 or more.
        label_smoothing: in [0, 1), as in ``nn.CrossEntropyLoss``.
        ignore_index: labels (not probabilities) with this value are ignored: their loss is 0 for "none", and the mean
            excludes them.
        reduction: "mean", "sum" or "none". The mean over labels divides by the sum of their weights, as in
            ``nn.CrossEntropyLoss``; the paper's code divides by their number.

    Shapes: logits (B, C) or (B, C, d1, ...), any float dtype; target (B,) or (B, d1, ...), integer labels, or
    probabilities of the logits' shape. The loss is a scalar, or has the shape of the labels for "none"; it is float32
    (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Out-of-range labels raise on a GPU only
            with ``LTFAST_CHECKS=1``.

    Examples:
        >>> loss = ClassBalancedLoss(class_counts=[500, 50, 5])(torch.randn(8, 3), torch.randint(3, (8,)))
    """

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        loss: Literal["cross_entropy", "focal"] = "cross_entropy",
        beta: float = 0.9999,
        gamma: float = 2.0,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        if loss not in ("cross_entropy", "focal"):
            raise ValueError(f"loss is {loss!r}: expected 'cross_entropy' or 'focal'")
        check_number("gamma", gamma, at_least=0)
        weight = effective_number_weights(class_counts, beta=beta)
        super().__init__(torch.zeros_like(weight), weight, label_smoothing, ignore_index, reduction)
        self.loss = loss
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.loss == "cross_entropy":
            return self.cross_entropy(logits, target)
        check_scores(logits, target, self.num_classes, *self.names)
        z, targets, counted = self.rows_and_targets(logits, target)
        share = self.smoothed(targets, counted)
        z = z.clamp(-LARGEST, LARGEST)
        # -log sigmoid(z) and -log(1 - sigmoid(z)); a power of 1 - q is the exponential of the other one's multiple
        of_label, of_others = F.softplus(-z), F.softplus(z)
        whole = share.sum(1, keepdim=True)
        of_class = share * (-self.gamma * of_others).exp() * of_label
        return self.reduce((of_class + (whole - share) * (-self.gamma * of_label).exp() * of_others).sum(1), target)
