from torch import Tensor, nn

from ltfast.losses.cross_entropy import shifted_cross_entropy
from ltfast.ops.core.checks import check_integer, check_number
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts


class LogitAdjustedLoss(nn.Module):
    """Logit-adjusted softmax cross-entropy: ``cross_entropy(logits + tau log(n / sum n), target)``.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10. With ``tau=1`` it is the balanced
    softmax (Ren et al., NeurIPS 2020). PyTorch's own cross-entropy computes it.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        tau: strength of the adjustment.
        ignore_index: labels (not probabilities) with this value are ignored; the mean excludes them.

    Shapes: logits (B, C) or (B, C, d1, ...), any float dtype; target (B,) or (B, d1, ...), integer labels, or
    probabilities of the logits' shape. The loss is a scalar, the mean over the labels.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Out-of-range labels raise only on the CPU.
    """

    adjustment: Tensor

    def __init__(self, class_counts: ClassCounts, *, tau: float = 1.0, ignore_index: int = -100) -> None:
        super().__init__()
        counts = parse_class_counts(class_counts)
        check_number("tau", tau)
        check_integer("ignore_index", ignore_index)
        self.ignore_index = ignore_index
        self.register_buffer("adjustment", (tau * (counts / counts.sum()).log()).float(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return shifted_cross_entropy(logits, self.adjustment, target, ignore_index=self.ignore_index)
