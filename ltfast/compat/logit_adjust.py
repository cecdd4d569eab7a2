from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.compat.device import follow
from ltfast.losses import LogitAdjustedLoss


class LogitAdjust(nn.Module):
    """``LogitAdjust`` of BCL's, PaCo's and ProCo's training scripts.

    Args:
        cls_num_list: training images of each class.
        tau: strength of the adjustment.
        weight: class weights of the cross-entropy.
    """

    m_list: Tensor
    weight: Tensor | None

    def __init__(self, cls_num_list: Sequence[int], tau: float = 1, weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer(
            "m_list", LogitAdjustedLoss(cls_num_list, tau=tau).adjustment.view(1, -1), persistent=False
        )
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        follow(self, x)
        return F.cross_entropy(x + self.m_list, target, weight=self.weight)
