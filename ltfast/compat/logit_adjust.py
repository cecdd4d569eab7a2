from torch import Tensor, nn

from ltfast.losses import LogitAdjustedLoss
from ltfast.losses.cross_entropy import shifted_cross_entropy
from ltfast.losses.device import follow
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts


class LogitAdjust(nn.Module):
    """Replaces ``LogitAdjust`` of BCL's, PaCo's and ProCo's training scripts.

    Args:
        cls_num_list: (C,), training images of each class.
        tau: strength of the adjustment.
        weight: (C,), class weights of the cross-entropy.

    Shapes: as ``ltfast.losses.LogitAdjustedLoss``.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    m_list: Tensor
    weight: Tensor | None

    def __init__(self, cls_num_list: ClassCounts, tau: float = 1, weight: Tensor | None = None) -> None:
        super().__init__()
        adjustment = LogitAdjustedLoss(parse_class_counts(cls_num_list, name="cls_num_list"), tau=tau).shift
        self.register_buffer("m_list", adjustment.view(1, -1), persistent=False)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        follow(self, x)
        return shifted_cross_entropy(x, self.m_list.view(-1), target, weight=self.weight, names=("x", "target"))
