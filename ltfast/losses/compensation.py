from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ltfast.losses.softmax_loss import SoftmaxLoss
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts

MANY, FEW = 100, 20  # many: more than 100 images; few: fewer than 20; medium: the rest


class CompensationLoss(SoftmaxLoss):
    """Compensation loss of decoupled optimisation: ``cross_entropy(logits - log alpha_stage, target)``.

    Cong et al., "Decoupled Optimisation for Long-Tailed Visual Recognition", AAAI 2024. Each stage samples one group of
    classes more often and raises the logits of the other classes during training, which biases the network itself
    towards the group:

    - Stage 1 (many): alpha is 1.
    - Stage 2 (medium): alpha is ``rho`` for the preferred classes and ``1 - rho`` for the others, the sampling shares
      of the stage. (The same rho for all classes would cancel in the softmax.)
    - Stage 3 (few): alpha is the reversed list of class frequencies; the most common class gets the frequency of the
      rarest.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        stage: 1, 2 or 3.
        rho: share of the preferred classes in stage 2, in (0, 1).
        preferred: the preferred classes of stage 2; None selects the classes with 20 to 100 images.
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
        stage: int,
        *,
        rho: float = 0.8,
        preferred: Sequence[int] | None = None,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        counts = parse_class_counts(class_counts)
        if stage not in (1, 2, 3):
            raise ValueError(f"stage is {stage!r}: expected 1, 2 or 3")
        if not 0 < rho < 1:
            raise ValueError(f"rho is {rho}: expected a number in (0, 1)")
        if stage == 1:
            alpha = torch.ones_like(counts)
        elif stage == 2:
            chosen = (counts >= FEW) & (counts <= MANY)
            if preferred is not None:
                outside = [c for c in preferred if not 0 <= c < len(counts)]
                if outside:
                    raise ValueError(f"preferred has class {outside[0]}: expected classes in [0, {len(counts)})")
                chosen = torch.zeros(len(counts), dtype=torch.bool)
                chosen[list(preferred)] = True
            alpha = torch.where(chosen, rho, 1 - rho).to(counts.dtype)
        else:
            order = counts.argsort()
            alpha = torch.empty_like(counts)
            alpha[order] = counts[order].flip(0) / counts.sum()
        super().__init__(-alpha.log(), weight, label_smoothing, ignore_index, reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.cross_entropy(logits, target)
