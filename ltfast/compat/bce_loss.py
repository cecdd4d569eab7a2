from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltfast import ops
from ltfast.losses import BalancedBCELoss


class BCE_loss(nn.Module):
    """``BCE_loss`` of LiVT's training script: C times the elementwise mean, so the sum over the classes.

    Args:
        args: the script's namespace; ``args.cls_num`` holds the training images of each class,
            ``args.smoothing`` the label smoothing.
        target_threshold: targets over it become 1, the others 0.
        type: "Bal" adds the log-odds of the class prior to the logits; "CB" weighs the classes by effective
            number (Cui et al., CVPR 2019, beta 0.9999); None does neither.
        reduction: "mean" or "sum".
        pos_weight: (C,), weight of the positive term.
    """

    def __init__(
        self,
        args: Any = None,
        target_threshold: float | None = None,
        type: Literal["Bal", "CB"] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}: expected 'mean' or 'sum'")
        if type not in ("Bal", "CB", None):
            raise ValueError(f"type is {type!r}: expected 'Bal', 'CB' or None")
        self.smoothing = float(getattr(args, "smoothing", 0.0))
        self.target_threshold = target_threshold
        self.reduction = reduction
        bias = weight = None
        if type == "Bal":
            bias = BalancedBCELoss(args.cls_num).bias
        if type == "CB":
            weight = (1 - 0.9999) / (1 - 0.9999 ** torch.as_tensor(args.cls_num, dtype=torch.float64))
            weight = (weight / weight.sum() * len(weight)).float()
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        buffers = dict(self.named_buffers())
        if any(buffer.device != x.device for buffer in buffers.values()):
            self.to(x.device)  # the authors' scripts never move the loss
            buffers = dict(self.named_buffers())
        loss = ops.balanced_bce(
            x,
            target,
            buffers["bias"] if "bias" in buffers else x.new_zeros(x.shape[1]),
            weight=buffers.get("weight"),
            pos_weight=buffers.get("pos_weight"),
            label_smoothing=self.smoothing if target.dim() == 1 else 0.0,
            target_threshold=self.target_threshold,
            reduction=self.reduction,
        )
        return loss * x.shape[1] if self.reduction == "sum" else loss
