"""A classifier's last layer and its loss in one, for batches whose (B, C) logits take too much memory."""

from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltfast import ops
from ltfast.losses.agcl import AGCLLoss
from ltfast.losses.balanced_bce import BalancedBCELoss
from ltfast.losses.balanced_softmax import BalancedSoftmaxLoss
from ltfast.losses.compensation import CompensationLoss
from ltfast.losses.gcl import GCLLoss
from ltfast.losses.logit_adjusted import LogitAdjustedLoss
from ltfast.ops.core.class_counts import ClassCounts
from ltfast.ops.core.collectives import own_share
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

    It takes the layer's input and parameters. The memory beside their gradients is that of a block of rows.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        class_parallel: whether the classes are split over the processes of ``torch.distributed``: weight and bias are
            those of this process's classes, (C_r, D) and (C_r,), and each process gets their gradients for the sum of
            all processes' losses. The target is then (B,) labels, and there is no class weight. See
            ``ltfast.ops.class_parallel_linear_cross_entropy``.
        options: the other arguments of ``LogitAdjustedLoss``.

    Shapes: features (B, D), any float dtype; weight (C, D) and bias (C,) or None, of that dtype, or of any under
    autocast; target (B,) integer labels or (B, C) probabilities. The loss is float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Examples:
        >>> layer = torch.nn.Linear(16, 3)
        >>> criterion = LinearLogitAdjustedLoss(class_counts=[500, 50, 5])
        >>> loss = criterion(torch.randn(8, 16), layer.weight, layer.bias, torch.randint(3, (8,)))
    """

    class_parallel = False

    def __init__(self, class_counts: ClassCounts, *, class_parallel: bool = False, **options: Any) -> None:
        super().__init__(class_counts, **options)
        _check_no_weight(self.weight, class_parallel)
        self.class_parallel = class_parallel

    def forward(self, features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:  # type: ignore[override]
        options: dict[str, Any] = {
            "label_smoothing": self.label_smoothing,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
        }
        if self.class_parallel:
            return ops.class_parallel_linear_cross_entropy(
                features, weight, bias, target, self.num_classes, adjustment=own_share(self.shift), **options
            )
        _check_classes(weight, self.num_classes)
        return ops.linear_cross_entropy(
            features, weight, bias, target, adjustment=self.shift, class_weight=self.weight, **options
        )


class LinearCompensationLoss(CompensationLoss):
    """``CompensationLoss`` of a linear layer, without its logits.

    It takes the layer's input and parameters. The memory beside their gradients is that of a block of rows. Arguments
    of the constructor: those of ``CompensationLoss``.

    Shapes: features (B, D), any float dtype; weight (C, D) and bias (C,) or None, of that dtype, or of any under
    autocast; target (B,) integer labels or (B, C) probabilities. The loss is float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Examples:
        >>> layer = torch.nn.Linear(16, 3)
        >>> criterion = LinearCompensationLoss(class_counts=[500, 50, 5], stage=2)
        >>> loss = criterion(torch.randn(8, 16), layer.weight, layer.bias, torch.randint(3, (8,)))
    """

    def forward(self, features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:  # type: ignore[override]
        _check_classes(weight, self.num_classes)
        return ops.linear_cross_entropy(
            features,
            weight,
            bias,
            target,
            adjustment=self.shift,
            class_weight=self.weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class LinearBalancedBCELoss(BalancedBCELoss):
    """``BalancedBCELoss`` of a linear layer, without its logits.

    It takes the layer's input and parameters. The memory beside their gradients is that of a block of rows.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels; at least two classes.
        class_parallel: whether the classes are split over the processes of ``torch.distributed``: weight and bias are
            those of this process's classes, (C_r, D) and (C_r,), and each process gets their gradients for the sum of
            all processes' losses. The target is then (B,) labels, and there is no class weight. See
            ``ltfast.ops.class_parallel_linear_balanced_bce``.
        options: the other arguments of ``BalancedBCELoss``.

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

    class_parallel = False

    def __init__(self, class_counts: ClassCounts, *, class_parallel: bool = False, **options: Any) -> None:
        super().__init__(class_counts, **options)
        _check_no_weight(self.weight, class_parallel)
        self.class_parallel = class_parallel

    def forward(self, features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:  # type: ignore[override]
        options: dict[str, Any] = {
            "label_smoothing": self.label_smoothing,
            "target_threshold": self.target_threshold,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
        }
        classes = len(self.bias)
        if self.class_parallel:
            return ops.class_parallel_linear_balanced_bce(
                features, weight, bias, target, classes, own_share(self.bias), **options
            )
        _check_classes(weight, classes)
        return ops.linear_balanced_bce(features, weight, bias, target, self.bias, class_weight=self.weight, **options)


class LinearAGCLLoss(AGCLLoss):
    """``AGCLLoss`` of a cosine classifier, without its cosines.

    It takes the classifier's input and weight, and divides both by their lengths. The memory beside their gradients is
    that of a block of rows. Arguments of the constructor: those of ``AGCLLoss``. With ``class_parallel=True`` the
    weight is that of this process's classes, (C_r, D), and each process gets its gradient for the sum of all processes'
    losses; see ``ltfast.ops.class_parallel_linear_agcl``.

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
        classes, clouds, options = len(self.class_noise), self.clouds(), self.options()
        if self.class_parallel:
            return ops.class_parallel_linear_agcl(
                features, weight, target, classes, clouds, generator=generator, **options
            )
        _check_classes(weight, classes)
        return ops.linear_agcl(
            features, weight, target, clouds, class_weight=self.weight, generator=generator, **options
        )


_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.CrossEntropyLoss: LinearCrossEntropyLoss,
    LogitAdjustedLoss: LinearLogitAdjustedLoss,
    BalancedSoftmaxLoss: LinearLogitAdjustedLoss,
    CompensationLoss: LinearCompensationLoss,
    BalancedBCELoss: LinearBalancedBCELoss,
    AGCLLoss: LinearAGCLLoss,
    GCLLoss: LinearAGCLLoss,
}


def linear_form(loss: nn.Module) -> nn.Module | None:
    """A loss of class scores in its form without them: with the same settings, and the same names in its state dict.
    None if it has no such form."""
    form = _FORMS.get(type(loss))
    if form is None:
        return None
    linear = deepcopy(loss)
    linear.__class__ = form  # both have the same attributes; only `forward` differs
    return linear


def is_linear(loss: nn.Module) -> bool:
    """Whether a loss takes the features, weight and bias of a linear layer instead of its output."""
    return isinstance(loss, tuple(_FORMS.values()))


def _check_no_weight(weight: Tensor | None, class_parallel: bool) -> None:
    if class_parallel and weight is not None:
        raise ValueError("weight is not None: expected None with class_parallel=True")


def _check_classes(weight: Tensor, classes: int) -> None:
    """Check for one row for each class count of a loss. Leaves anything but a matrix to the op."""
    if isinstance(weight, Tensor) and weight.dim() == 2 and len(weight) != classes:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: expected ({classes}, width), a row for each of class_counts"
        )
