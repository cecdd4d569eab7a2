"""The losses of LIFT (Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML 2024) with
their names and signatures: ``from ltfast.compat.lift import *`` replaces ``from utils.losses import *``.

They take logits (B, C), or (B, C, d1, ...) where ``ltfast.losses`` does, and integer labels, of which -100 is ignored.
The loss is a scalar. ``cls_num_list`` is (C,), the training images of each class. An invalid argument raises a
ValueError or TypeError that names it.
"""

import torch
from torch import Tensor

from ltfast import losses
from ltfast.compat import focal, vs
from ltfast.losses.device import follow
from ltfast.losses.softmax_loss import SoftmaxLoss
from ltfast.ops.core.checks import check_number, check_positive
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts

__all__ = [
    "BalancedSoftmaxLoss",
    "ClassBalancedLoss",
    "FocalLoss",
    "GeneralizedReweightLoss",
    "LADELoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "VSLoss",
]

NAMES = ("logit", "target")


def _counts(cls_num_list: ClassCounts) -> Tensor:
    return parse_class_counts(cls_num_list, name="cls_num_list")


class FocalLoss(focal.FocalLoss):
    """Replaces LIFT's ``FocalLoss``: that of LDAM-DRW with another default."""

    name = "logit"

    def __init__(self, weight: Tensor | None = None, gamma: float = 2.0) -> None:
        super().__init__(weight, gamma)


class LDAMLoss(losses.LDAMLoss):
    """Replaces LIFT's ``LDAMLoss``, whose logits are cosines that were multiplied by ``s`` before.

    Args:
        cls_num_list: (C,), training images of each class.
        max_m: margin of the rarest class, in units of the cosine.
        s: scale of the logits; it multiplies the margins alone.
    """

    def __init__(self, cls_num_list: ClassCounts, max_m: float = 0.5, s: float = 30) -> None:
        check_number("max_m", max_m, at_least=0)
        check_positive("s", s)
        super().__init__(_counts(cls_num_list), scale=1.0, max_margin=max_m * s)
        self.watch.warned = True  # the logits are no cosines, and need not be

    def forward(self, logit: Tensor, target: Tensor) -> Tensor:
        follow(self, logit)
        return self.from_cosines(logit, target, "logit")


class ClassBalancedLoss(losses.ClassBalancedLoss):
    """Replaces LIFT's ``ClassBalancedLoss``: the cross-entropy, weighted by the effective numbers of images."""

    names = NAMES

    def __init__(self, cls_num_list: ClassCounts, beta: float = 0.9999) -> None:
        super().__init__(_counts(cls_num_list), beta=beta)

    def forward(self, logit: Tensor, target: Tensor) -> Tensor:
        follow(self, logit)
        return super().forward(logit, target)


class GeneralizedReweightLoss(SoftmaxLoss):
    """Replaces LIFT's ``GeneralizedReweightLoss``: the cross-entropy with the weights ``prior^-exp_scale`` (Zhang et
    al., "Distribution Alignment", CVPR 2021), scaled to the mean 1."""

    names = NAMES

    def __init__(self, cls_num_list: ClassCounts, exp_scale: float = 1.0) -> None:
        check_number("exp_scale", exp_scale)
        counts = _counts(cls_num_list)
        weight = (counts / counts.sum()) ** -exp_scale
        super().__init__(torch.zeros_like(counts), (weight / weight.mean()).float(), 0.0, -100, "mean")

    def forward(self, logit: Tensor, target: Tensor) -> Tensor:
        follow(self, logit)
        return self.cross_entropy(logit, target)


class LogitAdjustedLoss(SoftmaxLoss):
    """Replaces LIFT's ``LogitAdjustedLoss``."""

    names = NAMES

    def __init__(self, cls_num_list: ClassCounts, tau: float = 1.0) -> None:
        check_number("tau", tau)
        counts = _counts(cls_num_list)
        super().__init__(tau * (counts / counts.sum()).log(), None, 0.0, -100, "mean")

    def forward(self, logit: Tensor, target: Tensor) -> Tensor:
        follow(self, logit)
        return self.cross_entropy(logit, target)


class BalancedSoftmaxLoss(LogitAdjustedLoss):
    """Replaces LIFT's ``BalancedSoftmaxLoss``."""

    def __init__(self, cls_num_list: ClassCounts) -> None:
        super().__init__(cls_num_list)


class LADELoss(losses.LADELoss):
    """Replaces LIFT's ``LADELoss``."""

    names = NAMES

    def __init__(self, cls_num_list: ClassCounts, remine_lambda: float = 0.1, estim_loss_weight: float = 0.1) -> None:
        counts = _counts(cls_num_list)
        super().__init__(counts, remine_lambda=remine_lambda, estim_loss_weight=estim_loss_weight)

    def forward(self, logit: Tensor, target: Tensor) -> Tensor:
        follow(self, logit)
        return super().forward(logit, target)


class VSLoss(vs.VSLoss):
    """The vector-scaling loss, which scripts derived from LIFT have beside its losses."""

    names = NAMES
