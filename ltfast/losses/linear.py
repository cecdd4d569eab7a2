"""A classifier's last layer and its loss in one, for batches whose (B, C) logits take too much memory."""

import torch
from torch import Tensor

from ltfast import ops
from ltfast.losses.agcl import AGCLLoss
from ltfast.losses.balanced_bce import BalancedBCELoss


class LinearBalancedBCELoss(BalancedBCELoss):
    """``BalancedBCELoss`` of a linear layer, without its logits.

    It takes the layer's input and parameters. The memory beside their gradients is that of a block of rows. Arguments
    of the constructor: those of ``BalancedBCELoss``.

    Shapes: features (B, D), any float dtype; weight (C, D) and bias (C,) or None, of that dtype, or of any under
    autocast; target (B,) integer labels or (B, C) probabilities. The loss is float32 (float64 for float64). The
    gradients of features, weight and bias are those of ``BalancedBCELoss()(F.linear(features, weight, bias), target)``.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Examples:
        >>> layer = torch.nn.Linear(16, 3)
        >>> criterion = LinearBalancedBCELoss(class_counts=[500, 50, 5])
        >>> loss = criterion(torch.randn(8, 16), layer.weight, layer.bias, torch.randint(3, (8,)))
    """

    def forward(self, features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:  # type: ignore[override]
        _check_classes(weight, len(self.bias))
        return ops.linear_balanced_bce(
            features,
            weight,
            bias,
            target,
            self.bias,
            label_smoothing=self.label_smoothing,
            target_threshold=self.target_threshold,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class LinearAGCLLoss(AGCLLoss):
    """``AGCLLoss`` of a cosine classifier, without its cosines.

    It takes the classifier's input and weight, and divides both by their lengths. The memory beside their gradients is
    that of a block of rows. Arguments of the constructor: those of ``AGCLLoss``, without ``class_parallel``.

    Shapes: features (B, D), any float dtype; weight (C, D), of that dtype, or of any under autocast; bias None; target
    (B,) integer labels. The loss is float32 (float64 for float64). The gradients of features and weight are those of
    ``AGCLLoss()(F.linear(F.normalize(features), F.normalize(weight)), target)``.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Examples:
        >>> weight = torch.randn(3, 16, requires_grad=True)
        >>> loss = LinearAGCLLoss(class_counts=[500, 50, 5])(torch.randn(8, 16), weight, None, torch.randint(3, (8,)))
    """

    def forward(  # type: ignore[override]
        self,
        features: Tensor,
        weight: Tensor,
        bias: None,
        target: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if bias is not None:
            raise ValueError("bias is not None: expected None, because a cosine classifier has no bias")
        _check_classes(weight, len(self.class_noise))
        return ops.linear_agcl(
            features,
            weight,
            target,
            self.clouds(),
            scale=self.scale,
            margin=self.margin,
            weight_pos=self.weight_pos,
            weight_neg=self.weight_neg,
            gamma_pos=self.gamma_pos,
            gamma_neg=self.gamma_neg,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            generator=generator,
        )


def _check_classes(weight: Tensor, classes: int) -> None:
    """Check for one row for each class count of a loss. Leaves anything but a matrix to the op."""
    if isinstance(weight, Tensor) and weight.dim() == 2 and len(weight) != classes:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: expected ({classes}, width), a row for each of class_counts"
        )
