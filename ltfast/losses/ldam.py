from typing import Literal

import torch
from torch import Tensor

from ltfast.losses.rows import rows_of
from ltfast.losses.softmax_loss import SoftmaxLoss
from ltfast.losses.watch import Watch
from ltfast.ops import cross_entropy
from ltfast.ops.core.checks import check_number, check_positive
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts
from ltfast.ops.core.tensors import accumulator


class LDAMLoss(SoftmaxLoss):
    """Label-distribution-aware margin loss for a cosine classifier: ``cross_entropy(scale * (x - m * t), t)``.

    Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019, equation 13. The
    margin m of a class with n images is proportional to n^(-1/4), and the rarest class has ``max_margin``. It is
    subtracted from the label's cosine: t is 1 for the label and 0 for the other classes. For probabilities t, which the
    paper does not have, each class has its margin in proportion to its probability. Label smoothing does not change the
    margins.

    The input must be cosines, such as the output of ``ltfast.models.CosineClassifier``; the loss multiplies them by
    ``scale``. Values outside [-1, 1] cause a warning, once per loss object. They are checked on some calls on a CPU,
    and on a GPU only with ``LTFAST_CHECKS=1``.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        scale: factor that multiplies the cosines and the margins.
        max_margin: margin of the rarest class.
        weight: (C,), floating-point, the weight of each class as in ``nn.CrossEntropyLoss``; None weights all classes
            alike. The attribute ``weight`` can be replaced between steps: the paper trains without weights first
            (deferred re-weighting).
        label_smoothing: in [0, 1), as in ``nn.CrossEntropyLoss``.
        ignore_index: labels (not probabilities) with this value are ignored: their loss is 0 for "none", and the mean
            excludes them.
        reduction: "mean", "sum" or "none". With weights, the mean over labels divides by the sum of their weights.

    Shapes: cosine (B, C) or (B, C, d1, ...), any float dtype; target (B,) or (B, d1, ...), integer labels, or
    probabilities of the cosines' shape. The loss is a scalar, or has the shape of the labels for "none"; it is float32
    (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Out-of-range labels raise on a GPU only
            with ``LTFAST_CHECKS=1``.

    Examples:
        >>> loss = LDAMLoss(class_counts=[500, 50, 5])(torch.rand(8, 3), torch.randint(3, (8,)))
    """

    margins: Tensor

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        scale: float = 30.0,
        max_margin: float = 0.5,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        counts = parse_class_counts(class_counts)
        check_positive("scale", scale)
        check_number("max_margin", max_margin, at_least=0)
        super().__init__(torch.zeros_like(counts), weight, label_smoothing, ignore_index, reduction)
        margins = max_margin * (counts.min() / counts) ** 0.25
        self.register_buffer("margins", margins.float(), persistent=False)
        self.scale = scale
        self.watch = Watch()

    def forward(self, cosine: Tensor, target: Tensor) -> Tensor:
        return self.from_cosines(cosine, target)

    def from_cosines(self, cosine: Tensor, target: Tensor, name: str = "cosine") -> Tensor:
        """The loss; messages call the cosines ``name``."""
        rows = rows_of(cosine, target, len(self.margins), names=(name, "target"))
        x, t = rows.logits.to(accumulator(cosine.dtype)), rows.target
        if t.is_floating_point():
            margins = self.margins * t.to(x.dtype)
        else:
            margins = torch.where(t[:, None] == torch.arange(len(self.margins), device=t.device), self.margins, 0)
        loss = cross_entropy(
            self.scale * (x - margins),
            t,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
        if self.watch.due(cosine):
            self.watch.cosines("LDAMLoss", name, cosine)
        return rows.in_shape(loss, self.reduction)
