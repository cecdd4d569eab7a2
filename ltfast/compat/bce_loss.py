from typing import Any, Literal

from torch import Tensor, nn

from ltfast import ops
from ltfast.losses import BalancedBCELoss, effective_number_weights
from ltfast.losses.device import follow
from ltfast.ops.balanced_bce import check_arguments, reference
from ltfast.ops.balanced_bce.settings import BalancedBceSettings
from ltfast.ops.core.checks import check_classes, check_logits, check_reduction, check_reference_labels
from ltfast.ops.core.class_counts import parse_class_counts

_IGNORED = -100  # as in torch.nn.CrossEntropyLoss


class BCE_loss(nn.Module):
    """Replaces ``BCE_loss`` of LiVT's training script: C times the elementwise mean, which is the sum over the classes.

    Args:
        args: the script's namespace; ``args.cls_num`` holds the training images of each class,
            ``args.smoothing`` the label smoothing.
        target_threshold: targets above this value become 1, the others 0; None keeps the targets unchanged.
        type: "Bal" adds the log-odds of the class prior to the logits; "CB" weights the classes by their effective
            number (Cui et al., CVPR 2019, beta 0.9999); None does neither.
        reduction: "mean", "sum" or "none". "none" gives the elementwise losses, (B, C), computed in plain PyTorch.
        pos_weight: (C,), weight of the positive term.

    Shapes: x (B, C); target (B,) or (B, 1), integer labels, of which -100 is ignored, or (B, C) probabilities.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    bias: Tensor | None
    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        args: Any = None,
        target_threshold: float | None = None,
        type: Literal["Bal", "CB"] | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        if type not in ("Bal", "CB", None):
            raise ValueError(f"type is {type!r}: expected 'Bal', 'CB' or None")
        self.smoothing = float(getattr(args, "smoothing", 0.0))
        self.target_threshold = target_threshold
        self.reduction = reduction
        bias = weight = None
        if type == "Bal":
            bias = BalancedBCELoss(parse_class_counts(args.cls_num, at_least=2, name="args.cls_num")).bias
        if type == "CB":
            weight = effective_number_weights(parse_class_counts(args.cls_num, name="args.cls_num"))
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        follow(self, x)
        check_logits(x, "x")
        if isinstance(target, Tensor) and target.shape == (len(x), 1) and not target.is_floating_point():
            target = target.reshape(-1)
        for vector in (self.bias, self.weight):
            if vector is not None:
                check_classes(x, len(vector), "x")
        bias = x.new_zeros(x.shape[1]) if self.bias is None else self.bias
        check_arguments(x, target, bias, self.weight, self.pos_weight, _IGNORED, name="x")
        smoothing = self.smoothing if target.dim() == 1 else 0.0  # the authors smooth labels alone
        if self.reduction == "none":
            if target.dim() == 1:
                check_reference_labels(target, x.shape[1], ignore_index=_IGNORED)
            settings = BalancedBceSettings(smoothing, self.target_threshold, _IGNORED, "none")
            loss = reference.elementwise(x, target, bias, self.weight, self.pos_weight, settings)
        else:
            loss = ops.balanced_bce(
                x,
                target,
                bias,
                weight=self.weight,
                pos_weight=self.pos_weight,
                label_smoothing=smoothing,
                target_threshold=self.target_threshold,
                ignore_index=_IGNORED,
                reduction=self.reduction,
            )
        return loss if self.reduction == "mean" else loss * x.shape[1]
