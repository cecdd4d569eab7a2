import math
from typing import Literal

import torch
from torch import Tensor

from ltfast.losses.softmax_loss import SoftmaxLoss
from ltfast.ops.core.checks import check_number
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts

LARGEST = 1e17  # logits saturate here in the regulariser, whose square is then finite in float32


class LADELoss(SoftmaxLoss):
    """Label-distribution-disentangling loss of logits: a logit-adjusted cross-entropy and the regulariser LADER.

    Hong et al., "Disentangling Label Distribution for Long-tailed Visual Recognition", CVPR 2021, as in the authors'
    code. With the prior ``pi = n / sum n``, over the N rows of a batch,

        loss = cross_entropy(logits + log pi, target) + estim_loss_weight * LADER
        LADER = -sum_c pi_c (m_c - r_c - remine_lambda r_c^2)
        m_c = mean of x_ic over the rows with the label c (0 if there are none)
        r_c = log mean_i exp(x_ic - log pi_c - log C)

    LADER makes the logits estimates of ``log p(x | c) / p(x)``, by the regularised Donsker-Varadhan bound of the
    Kullback-Leibler divergence. It depends on the whole batch; under ``torch.distributed`` each process takes its own.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        remine_lambda: weight of the square in LADER, 0 or more.
        estim_loss_weight: weight of LADER, 0 or more; 0 leaves the balanced softmax.
        weight: (C,), floating-point, the weight of each class in the cross-entropy, as in ``nn.CrossEntropyLoss``; None
            weights all classes alike.
        label_smoothing: in [0, 1), as in ``nn.CrossEntropyLoss``; for the cross-entropy alone.
        ignore_index: labels (not probabilities) with this value are ignored: their loss is 0 for "none", and the mean
            and LADER exclude them.
        reduction: "mean", "sum" or "none". Each row that counts has the weighted LADER of the batch added to its loss,
            so that the sum, and the mean (which divides by the weights of the labels), are those of "none".

    Shapes: logits (B, C) or (B, C, d1, ...), any float dtype; target (B,) or (B, d1, ...), integer labels, or
    probabilities of the logits' shape, which weight the rows in m_c. The loss is a scalar, or has the shape of the
    labels for "none"; it is float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Out-of-range labels raise on a GPU only
            with ``LTFAST_CHECKS=1``.

    Examples:
        >>> loss = LADELoss(class_counts=[500, 50, 5])(torch.randn(8, 3), torch.randint(3, (8,)))
    """

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        remine_lambda: float = 0.1,
        estim_loss_weight: float = 0.1,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        counts = parse_class_counts(class_counts)
        check_number("remine_lambda", remine_lambda, at_least=0)
        check_number("estim_loss_weight", estim_loss_weight, at_least=0)
        super().__init__((counts / counts.sum()).log(), weight, label_smoothing, ignore_index, reduction)
        self.remine_lambda, self.estim_loss_weight = remine_lambda, estim_loss_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = self.cross_entropy(logits, target)
        regulariser = self.estim_loss_weight * self.lader(logits, target)
        if self.reduction == "mean":
            return loss + regulariser
        soft = target.is_floating_point()
        rows = loss.new_ones(logits.shape[:1] + logits.shape[2:]) if soft else self.row_weights(target, loss.dtype)
        # where, because the regulariser of ignored rows alone is NaN
        added = torch.where(rows > 0, regulariser * rows, 0)
        return loss + (added if self.reduction == "none" else added.sum())

    def lader(self, logits: Tensor, target: Tensor) -> Tensor:
        """LADER of a batch whose arguments were checked, a scalar."""
        z, own, counted = self.rows_and_targets(logits, target)
        z = z.clamp(-LARGEST, LARGEST)
        mean = (z * (own / own.sum(0).clamp(min=torch.finfo(z.dtype).tiny))).sum(0)
        log_prior = self.shift.to(z.dtype)
        spread = torch.where(counted, z - log_prior - math.log(self.num_classes), -math.inf)
        log_mean = spread.logsumexp(0) - counted.sum().log()
        estimate = mean - log_mean - self.remine_lambda * log_mean**2
        return -(log_prior.exp() * estimate).sum()
