from typing import Literal

from torch import Tensor, nn

from ltfast import ops
from ltfast.ops.core.checks import check_classes, check_integer, check_label_smoothing, check_number, check_reduction
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts


class BalancedBCELoss(nn.Module):
    """Balanced binary cross-entropy loss.

    Xu et al., "Learning Imbalanced Data with Vision Transformers", CVPR 2023: one binary cross-entropy per class, with
    the log-odds of the class prior added to the logit. The loss is summed over the classes and reduced over the batch.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels; at least two classes.
        tau: strength of the prior.
        label_smoothing: for integer labels, in [0, 1).
        target_threshold: targets above this value become 1, the others 0; None keeps the targets unchanged.
        ignore_index: labels (not soft targets) with this value are ignored: their loss is 0 for "none", and the mean
            excludes them.
        reduction: "mean", "sum" or "none".

    Shapes: logits (B, C), any float dtype; target (B,) integer labels or (B, C) probabilities (MixUp, CutMix); the loss
    is float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    bias: Tensor

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        tau: float = 1.0,
        label_smoothing: float = 0.0,
        target_threshold: float | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        # A single class would have prior 1 and infinite log-odds.
        counts = parse_class_counts(class_counts, at_least=2)
        check_number("tau", tau)
        check_reduction(reduction)
        check_integer("ignore_index", ignore_index)
        check_label_smoothing(label_smoothing)
        others = counts.sum() - counts
        self.register_buffer("bias", (tau * (counts.log() - others.log())).float(), persistent=False)
        self.label_smoothing = label_smoothing
        self.target_threshold = target_threshold
        self.ignore_index, self.reduction = ignore_index, reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_classes(logits, len(self.bias))
        return ops.balanced_bce(
            logits,
            target,
            self.bias,
            label_smoothing=self.label_smoothing,
            target_threshold=self.target_threshold,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
