from torch import Tensor

from ltfast import losses
from ltfast.losses.device import follow
from ltfast.ops.core.checks import check_number, check_positive
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts


class LDAMLoss(losses.LDAMLoss):
    """Replaces ``LDAMLoss`` of LDAM-DRW's training script.

    Args:
        cls_num_list: (C,), training images of each class.
        max_m: margin of the rarest class.
        weight: (C,), class weights of the cross-entropy; the script's ``per_cls_weights``.
        s: scale of the cosines.

    Shapes: x (B, C), cosines; target (B,), integer labels, of which -100 is ignored; the loss is a scalar.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    def __init__(
        self, cls_num_list: ClassCounts, max_m: float = 0.5, weight: Tensor | None = None, s: float = 30
    ) -> None:
        check_number("max_m", max_m, at_least=0)
        check_positive("s", s)
        counts = parse_class_counts(cls_num_list, name="cls_num_list")
        super().__init__(counts, scale=s, max_margin=max_m, weight=weight)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        follow(self, x)
        return self.from_cosines(x, target, "x")
