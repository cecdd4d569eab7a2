from typing import Literal

import torch
from torch import Tensor

from ltfast import ops
from ltfast.losses.rows import rows_of
from ltfast.losses.softmax_loss import SoftmaxLoss
from ltfast.ops.core.checks import check_number
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts

LOWEST = -1e30  # log-probabilities saturate here, so that finite logits give a finite loss


class FocalLoss(SoftmaxLoss):
    """Focal loss of the softmax of logits: ``-(1 - p_y)^gamma log p_y``.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4, with the softmax probability of the
    label as p, as in the comparisons of the long-tailed literature. (``ClassBalancedLoss(loss="focal")`` has a sigmoid
    for each class, as in the paper.) For probabilities t, or with label smoothing, the loss is
    ``-sum_c t_c (1 - p_c)^gamma log p_c``. The gradient includes the factor ``(1 - p)^gamma``.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels. The loss depends on their number
            C alone: the classes are weighted by ``weight``.
        gamma: focusing exponent, 0 or more; 0 gives the cross-entropy.
        weight: (C,), floating-point, the weight of each class (the paper's alpha), as in ``nn.CrossEntropyLoss``; None
            weights all classes alike. The attribute ``weight`` can be replaced between steps (deferred re-weighting).
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
        >>> loss = FocalLoss(class_counts=[500, 50, 5])(torch.randn(8, 3), torch.randint(3, (8,)))
    """

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        counts = parse_class_counts(class_counts)
        check_number("gamma", gamma, at_least=0)
        super().__init__(torch.zeros_like(counts), weight, label_smoothing, ignore_index, reduction)
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        rows = rows_of(logits, target, self.num_classes, names=self.names)
        if target.is_floating_point() or self.label_smoothing:
            z, targets, counted = self.rows_and_targets(logits, target)
            return self.reduce(self._of_shares(z, self.smoothed(targets, counted)), target)
        # A-GCL with the label's term alone: it reads the logits and writes their gradient. Plain PyTorch passes over as
        # much memory six times: it reads and writes log-softmax, and writes its gradient, which the backward pass of
        # log-softmax reads, with the output, and writes.
        loss = ops.agcl(
            rows.logits,
            rows.target,
            scale=1.0,
            margin=0.0,
            weight_neg=0.0,
            gamma_pos=self.gamma,
            gamma_neg=0.0,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
        return rows.in_shape(loss, self.reduction)

    def _of_shares(self, z: Tensor, share: Tensor) -> Tensor:
        """The losses (R,) of rows of logits and weighted soft targets (R, C)."""
        log_p = torch.log_softmax(z, dim=1).clamp(min=LOWEST)
        # 1 - p without cancellation, and kept from 0, where the derivative of a power under 1 is infinite
        rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(z.dtype).tiny)
        return -(share * rest**self.gamma * log_p).sum(1)
