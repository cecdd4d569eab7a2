from torch import Tensor

from ltfast import losses
from ltfast.losses.device import follow
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts


class VSLoss(losses.VSLoss):
    """Replaces ``VSLoss`` of VS-Loss's training script.

    Args:
        cls_num_list: (C,), training images of each class.
        gamma, tau: exponent of the factors, strength of the additive adjustment.
        weight: (C,), class weights of the cross-entropy.

    Shapes: as ``ltfast.losses.VSLoss``.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    names = ("x", "target")

    def __init__(
        self, cls_num_list: ClassCounts, gamma: float = 0.3, tau: float = 1.0, weight: Tensor | None = None
    ) -> None:
        counts = parse_class_counts(cls_num_list, name="cls_num_list")
        super().__init__(counts, gamma=gamma, tau=tau, weight=weight)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        follow(self, x)
        return super().forward(x, target)
