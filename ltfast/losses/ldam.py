from typing import Literal

import torch
from torch import Tensor, nn

from ltfast.losses.cross_entropy import label_cross_entropy
from ltfast.losses.watch import Watch
from ltfast.ops.core.checks import (
    check_class_vector,
    check_classes,
    check_integer,
    check_labels,
    check_logits,
    check_number,
    check_positive,
    check_reduction,
)
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts
from ltfast.ops.core.tensors import accumulator


class LDAMLoss(nn.Module):
    """Label-distribution-aware margin loss for a cosine classifier: ``cross_entropy(scale * (x - m_y [c = y]), y)``.

    Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019, equation 13. The
    margin of a class with n images is proportional to n^(-1/4), and the rarest class has ``max_margin``. The margin is
    subtracted from the label's cosine. PyTorch's own cross-entropy computes the rest.

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
        ignore_index: labels with this value are ignored: their loss is 0 for "none", and the mean excludes them.
        reduction: "mean", "sum" or "none". With weights, "mean" divides by the sum of the weights of the labels.

    Shapes: cosine (B, C), any float dtype; target (B,), integer labels; the loss is float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Out-of-range labels raise on a GPU only
            with ``LTFAST_CHECKS=1``.

    Examples:
        >>> loss = LDAMLoss(class_counts=[500, 50, 5])(torch.rand(8, 3), torch.randint(3, (8,)))
    """

    margins: Tensor
    weight: Tensor | None

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        scale: float = 30.0,
        max_margin: float = 0.5,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        counts = parse_class_counts(class_counts)
        check_positive("scale", scale)
        check_number("max_margin", max_margin, at_least=0)
        check_integer("ignore_index", ignore_index)
        check_reduction(reduction)
        if weight is not None:
            check_class_vector(weight, counts.to(getattr(weight, "device", "cpu"))[None], "weight", differentiable=True)
        margins = max_margin * (counts.min() / counts) ** 0.25
        self.register_buffer("margins", margins.float(), persistent=False)
        self.register_buffer("weight", weight, persistent=False)
        self.scale = scale
        self.ignore_index, self.reduction = ignore_index, reduction
        self.watch = Watch()

    def forward(self, cosine: Tensor, target: Tensor) -> Tensor:
        return self.from_cosines(cosine, target)

    def from_cosines(self, cosine: Tensor, target: Tensor, name: str = "cosine") -> Tensor:
        """The loss; messages call the cosines ``name``."""
        check_logits(cosine, name)
        classes = len(self.margins)
        check_classes(cosine, classes, name)
        check_labels(target, cosine, ignore_index=self.ignore_index)
        if self.weight is not None:
            check_class_vector(self.weight, cosine, "weight", differentiable=True)
        own = target[:, None] == torch.arange(classes, device=cosine.device)
        scores = self.scale * (cosine.to(accumulator(cosine.dtype)) - torch.where(own, self.margins, 0))
        weight = None if self.weight is None else self.weight.to(scores.dtype)
        loss = label_cross_entropy(
            scores, target, weight=weight, ignore_index=self.ignore_index, reduction=self.reduction
        )
        if self.watch.due(cosine):
            self.watch.cosines("LDAMLoss", name, cosine)
        return loss
