"""A classifier's last layer and its loss in one, for batches whose (B, C) logits take too much memory."""

from typing import Literal

import torch
from torch import Tensor, nn

from ltfast import ops
from ltfast.losses.agcl import AGCLLoss
from ltfast.losses.balanced_bce import BalancedBCELoss
from ltfast.losses.logit_adjusted import LogitAdjustedLoss
from ltfast.ops.cross_entropy.settings import CrossEntropySettings, check_settings


class LinearCrossEntropyLoss(nn.Module):
    """``nn.CrossEntropyLoss`` of a linear layer, without its logits.

    It takes the layer's input and parameters. The memory beside their gradients is that of a block of rows.

    Args:
        weight: (C,), the weight of each class, or None. It moves with the module.
        ignore_index: labels (not probabilities) with this value are ignored; the mean excludes them.
        reduction: "mean", "sum" or "none".
        label_smoothing: in [0, 1).

    Shapes: features (B, D), any float dtype; weight (C, D) and bias (C,) or None, of that dtype, or of any under
    autocast; target (B,) integer labels or (B, C) probabilities. The loss is float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Examples:
        >>> layer = torch.nn.Linear(16, 3)
        >>> criterion = LinearCrossEntropyLoss(label_smoothing=0.1)
        >>> loss = criterion(torch.randn(8, 16), layer.weight, layer.bias, torch.randint(3, (8,)))
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_settings(CrossEntropySettings(label_smoothing, ignore_index, reduction))
        self.register_buffer("weight", weight, persistent=False)
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing

    def forward(self, features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        return ops.linear_cross_entropy(
            features,
            weight,
            bias,
            target,
            class_weight=self.weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class LinearLogitAdjustedLoss(LogitAdjustedLoss):
    """``LogitAdjustedLoss`` of a linear layer, without its logits.

    It takes the layer's input and parameters. The memory beside their gradients is that of a block of rows. Arguments
    of the constructor: those of ``LogitAdjustedLoss``.

    Shapes: features (B, D), any float dtype; weight (C, D) and bias (C,) or None, of that dtype, or of any under
    autocast; target (B,) integer labels or (B, C) probabilities. The loss is float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Examples:
        >>> layer = torch.nn.Linear(16, 3)
        >>> criterion = LinearLogitAdjustedLoss(class_counts=[500, 50, 5])
        >>> loss = criterion(torch.randn(8, 16), layer.weight, layer.bias, torch.randint(3, (8,)))
    """

    def forward(self, features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:  # type: ignore[override]
        _check_classes(weight, len(self.adjustment))
        return ops.linear_cross_entropy(
            features,
            weight,
            bias,
            target,
            adjustment=self.adjustment,
            class_weight=self.weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


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
        if self.class_parallel:
            raise ValueError(
                "class_parallel is True: expected False, because this loss needs the weight of all classes"
            )
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
