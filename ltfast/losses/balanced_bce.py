from typing import Literal

from torch import Tensor, nn

from ltfast import ops
from ltfast.losses.rows import rows_of
from ltfast.ops.core.checks import (
    check_class_weight,
    check_integer,
    check_label_smoothing,
    check_number,
    check_reduction,
)
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts


class BalancedBCELoss(nn.Module):
    """Balanced binary cross-entropy loss.

    Xu et al., "Learning Imbalanced Data with Vision Transformers", CVPR 2023: one binary cross-entropy per class, with
    the log-odds of the class prior added to the logit. The loss is summed over the classes and reduced over the batch.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels; at least two classes.
        num_samples: the number of training images, more than any class has, for images with several labels. The prior
            of a class is the share of the images that have its label. None means the sum of ``class_counts``, where
            each image has one label.
        tau: strength of the prior.
        weight: (C,), floating-point, the weight of each class's binary cross-entropy, as in ``nn.BCEWithLogitsLoss``;
            None weights all classes alike.
        label_smoothing: s in [0, 1): targets become (1 - s) t + s/C, as in ``nn.CrossEntropyLoss``.
        target_threshold: targets above this value become 1, the others 0; None keeps the targets unchanged.
        ignore_index: labels (not soft targets) with this value are ignored: their loss is 0 for "none", and the mean
            excludes them.
        reduction: "mean", "sum" or "none". The mean is over the labels, also with weights.

    Shapes: logits (B, C) or (B, C, d1, ...), any float dtype; target (B,) or (B, d1, ...), integer labels, or values in
    [0, 1] of the logits' shape (MixUp, CutMix, several labels an image). The loss is a scalar, or has the shape of the
    labels for "none"; it is float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    bias: Tensor
    weight: Tensor | None

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        num_samples: float | None = None,
        tau: float = 1.0,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        target_threshold: float | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        # Without num_samples, a single class would have prior 1 and infinite log-odds.
        counts = parse_class_counts(class_counts, at_least=2 if num_samples is None else 1)
        total = counts.sum() if num_samples is None else _checked(num_samples, counts)
        check_number("tau", tau)
        check_reduction(reduction)
        check_integer("ignore_index", ignore_index)
        check_label_smoothing(label_smoothing)
        check_class_weight(weight, len(counts))
        self.register_buffer("weight", weight, persistent=False)
        others = total - counts
        self.register_buffer("bias", (tau * (counts.log() - others.log())).float(), persistent=False)
        self.label_smoothing = label_smoothing
        self.target_threshold = target_threshold
        self.ignore_index, self.reduction = ignore_index, reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        rows = rows_of(logits, target, len(self.bias))
        loss = ops.balanced_bce(
            rows.logits,
            rows.target,
            self.bias,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            target_threshold=self.target_threshold,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
        return rows.in_shape(loss, self.reduction)


def _checked(num_samples: float, counts: Tensor) -> float:
    check_number("num_samples", num_samples)
    largest = int(counts.argmax())
    if not num_samples > counts[largest]:
        raise ValueError(
            f"num_samples is {num_samples}: expected more than {counts[largest].item():g}, class_counts[{largest}], so "
            "that each class is absent from some images"
        )
    return num_samples
