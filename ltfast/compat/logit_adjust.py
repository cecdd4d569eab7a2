from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.losses import LogitAdjustedLoss


class LogitAdjust(nn.Module):
    """``LogitAdjust`` of BCL's, PaCo's and ProCo's training scripts.

    Args:
        cls_num_list: training images of each class.
        tau: strength of the adjustment.
        weight: class weights of the cross-entropy.
    """

    def __init__(self, cls_num_list: Sequence[int], tau: float = 1, weight: Tensor | None = None) -> None:
        super().__init__()
        adjustment = LogitAdjustedLoss(cls_num_list, tau=tau).adjustment
        self.register_buffer("m_list", adjustment.view(1, -1), persistent=False)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        m_list = self.get_buffer("m_list")
        if m_list.device != x.device:  # the authors' scripts build the loss on the GPU and never move it
            self.to(x.device)
            m_list = self.get_buffer("m_list")
        weight = self.weight if isinstance(self.weight, torch.Tensor) else None
        return F.cross_entropy(x + m_list, target, weight=weight)
