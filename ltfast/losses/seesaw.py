import math
from typing import Literal

import torch
from torch import Tensor

from ltfast.losses.rows import rows_of
from ltfast.losses.softmax_loss import SoftmaxLoss
from ltfast.ops.core.checks import check_number, check_reference_labels
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts
from ltfast.ops.core.collectives import gather
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.core.torch_internals import in_backward

LABELS_ONLY = (
    "The factors of this loss are those of one label. For mixed images, add the losses of both labels, each times its "
    "share: lam * loss(logits, a) + (1 - lam) * loss(logits, b)"
)


class SeesawLoss(SoftmaxLoss):
    """Seesaw loss of logits: a softmax cross-entropy in which rare classes push back common ones, but not conversely.

    Wang et al., "Seesaw Loss for Long-Tailed Instance Segmentation", CVPR 2021, section 3, as in MMDetection, without
    the branch that separates objects from the background. With N_c the labels c seen so far and the softmax sigma,

        loss = cross_entropy(x_j + log S_yj, y),   S_yj = M_yj C_yj for j != y, and S_yy = 1
        M_yj = min(1, N_j / N_y)^p                      the mitigation factor
        C_yj = max(1, sigma_j / max(sigma_y, eps))^q    the compensation factor, through which no gradient flows

    In training mode, each call first adds its labels to the counts N, the buffer ``cum_samples``, which is saved with
    the module; under ``torch.distributed`` it adds those of all processes. In evaluation mode (``eval()``) they stay as
    they are. A forward pass that activation checkpointing repeats in the backward pass does not count again.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels. The loss depends on their number
            C alone: the counts N are those of the labels it has seen, which a sampler may have balanced.
        p: exponent of the mitigation factor, 0 or more.
        q: exponent of the compensation factor, 0 or more.
        eps: the least sigma_y in the compensation factor, in (0, 1].
        weight: (C,), floating-point, the weight of each class as in ``nn.CrossEntropyLoss``; None weights all classes
            alike.
        label_smoothing: in [0, 1), as in ``nn.CrossEntropyLoss``, with the logits ``x_j + log S_yj``.
        ignore_index: labels with this value are ignored: their loss is 0 for "none", and the mean and the counts
            exclude them.
        reduction: "mean", "sum" or "none". With weights, "mean" divides by the sum of the weights of the labels.

    Shapes: logits (B, C) or (B, C, d1, ...), any float dtype; target (B,) or (B, d1, ...), integer labels. (The factors
    are those of one label, so there are no probabilities.) The loss is a scalar, or has the shape of the labels for
    "none"; it is float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Out-of-range labels raise on a GPU only
            with ``LTFAST_CHECKS=1``.

    Examples:
        >>> loss = SeesawLoss(class_counts=[500, 50, 5])(torch.randn(8, 3), torch.randint(3, (8,)))
    """

    cum_samples: Tensor

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        p: float = 0.8,
        q: float = 2.0,
        eps: float = 1e-2,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        counts = parse_class_counts(class_counts)
        check_number("p", p, at_least=0)
        check_number("q", q, at_least=0)
        check_number("eps", eps)
        if not 0 < eps <= 1:
            raise ValueError(f"eps is {eps}: expected a number in (0, 1]")
        super().__init__(torch.zeros_like(counts), weight, label_smoothing, ignore_index, reduction)
        self.p, self.q, self.eps = p, q, eps
        self.register_buffer("cum_samples", torch.zeros(len(counts), dtype=torch.int64))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        rows = rows_of(logits, target, self.num_classes, names=self.names, labels_only=LABELS_ONLY)
        labels = rows.target.long()
        check_reference_labels(labels, self.num_classes, ignore_index=self.ignore_index)
        counted = labels != self.ignore_index
        label = torch.where(counted, labels, 0).clamp(0, self.num_classes - 1)
        if self.training and (torch.compiler.is_compiling() or not in_backward()):
            seen = torch.zeros_like(self.cum_samples).scatter_add_(0, label, counted.long())
            self.cum_samples += gather(seen[None]).sum(0)
        factors = self.log_factors(rows.logits.detach(), label)
        return rows.in_shape(self.cross_entropy(rows.logits + factors, labels), self.reduction)

    def log_factors(self, logits: Tensor, label: Tensor) -> Tensor:
        """``log S_yj`` for rows of logits (R, C) and labels (R,) in [0, C): (R, C), 0 for the labels themselves."""
        dtype = accumulator(logits.dtype)
        log_counts = self.cum_samples.clamp(min=1).to(dtype).log()
        mitigation = (log_counts - log_counts[label][:, None]).clamp(max=0)
        log_sigma = torch.log_softmax(logits.to(dtype), dim=1)
        of_label = log_sigma.gather(1, label[:, None]).clamp(min=math.log(self.eps))
        compensation = (log_sigma - of_label).clamp(min=0)
        return self.p * mitigation + self.q * compensation
