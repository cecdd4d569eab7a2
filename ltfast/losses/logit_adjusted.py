from torch import Tensor, nn

from ltfast.losses.cross_entropy import shifted_cross_entropy
from ltfast.ops.core.checks import check_integer, check_number
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts


class LogitAdjustedLoss(nn.Module):
    """Logits -> logit-adjusted softmax cross-entropy: ``cross_entropy(logits + tau log(n / sum n), target)``.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10; also "balanced softmax" (Ren et
    al., NeurIPS 2020) at ``tau=1``. PyTorch's own cross-entropy does the work.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        tau: strength of the adjustment.
        ignore_index: labels (not probabilities) of this value are left out, and the mean is over the others.

    Shapes: logits (B, C) or (B, C, d1, ...), any float dtype; target (B,) or (B, d1, ...), integer labels, or
    probabilities of the logits' shape; a scalar, the mean over the labels.

    Raises:
        ValueError, TypeError: a bad argument, named. Labels out of range raise on the CPU.
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
