from typing import ClassVar

import torch
from torch import Tensor, nn

from ltfast.losses.cross_entropy import shifted_cross_entropy
from ltfast.losses.device import follow
from ltfast.ops.core.checks import check_class_vector, check_logits, check_number
from ltfast.ops.core.tensors import reduce


class FocalLoss(nn.Module):
    """Replaces ``FocalLoss`` of LDAM-DRW's training script.

    As in the authors' code, a class weight multiplies the cross-entropy before the factor is computed from it:
    ``(1 - exp(-w_y CE))^gamma w_y CE``. ``ltfast.losses.FocalLoss`` has the weight outside.

    Args:
        weight: (C,), class weights of the cross-entropy.
        gamma: focusing exponent.

    Shapes: input (B, C), logits; target (B,), integer labels, of which -100 is ignored; the loss is a scalar.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    name: ClassVar[str] = "input"  # of the logits, in messages
    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, gamma: float = 0.0) -> None:
        super().__init__()
        check_number("gamma", gamma, at_least=0)
        self.gamma = gamma
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        check_logits(input, self.name)
        follow(self, input)
        if self.weight is not None:
            check_class_vector(self.weight, input, "weight")
        none = torch.zeros(input.shape[1], device=input.device)
        names = self.name, "target"
        loss = shifted_cross_entropy(input, none, target, weight=self.weight, reduction="none", names=names)
        # kept from 0, where the derivative of a power under 1 is infinite
        rest = (-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).tiny)
        counted = None if target.is_floating_point() else target.long() != -100
        return reduce(rest**self.gamma * loss, "mean", counted)
