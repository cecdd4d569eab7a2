r"""A linear layer and its loss in one, without the logits.

.. math::

    L = \mathrm{loss}(X W^\top + b, t)

For a block of rows, one matrix product gives the logits Z, the loss's kernel gives G = dL/dZ, and two products give
:math:`dX = G W` and :math:`dW \mathrel{+}= G^\top X`; then the memory of the block is used again. These are the same
three products as with logits, but the memory beside the gradients is that of one block. (Cut Cross-Entropy, Wijmans et
al., ICLR 2025, and Liger Kernel have this for the plain cross-entropy.)
"""

import torch
from torch import Tensor

from ltfast.ops.agcl import AGCL
from ltfast.ops.agcl.settings import AgclSettings
from ltfast.ops.agcl.settings import check_settings as check_agcl
from ltfast.ops.balanced_bce import BALANCED_BCE
from ltfast.ops.balanced_bce.settings import BalancedBceSettings
from ltfast.ops.balanced_bce.settings import check_settings as check_balanced_bce
from ltfast.ops.core import checks
from ltfast.ops.core.tensors import accumulator, mean_weight
from ltfast.ops.cross_entropy import CROSS_ENTROPY
from ltfast.ops.cross_entropy.settings import CrossEntropySettings
from ltfast.ops.cross_entropy.settings import check_settings as check_cross_entropy
from ltfast.ops.linear.linear_loss import LinearLoss
from ltfast.ops.noise import draw_seed

__all__ = ["linear_agcl", "linear_balanced_bce", "linear_cross_entropy"]


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    adjustment: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``cross_entropy(F.linear(features, weight, bias), target, adjustment)`` without the logits.

    Args:
        features: (B, D), float32, float64, bfloat16 or float16. Any strides.
        weight: (C, D), of that dtype; under autocast any float dtype.
        bias: (C,), or None.
        target: (B,) integer labels in [0, C) or ``ignore_index``, or (B, C) probabilities, which have no gradient.
        adjustment: (C,), the ``bias`` of ``cross_entropy``, or None (logit adjustment: the log of the class prior). It
            has no gradient.
        class_weight: (C,) or None: the ``weight`` of ``cross_entropy``.
        label_smoothing, ignore_index, reduction: see ``cross_entropy``.

    Returns:
        The loss, a scalar, or (B,) for "none": float32, or float64 for float64 features. It is differentiable in
        features, weight and bias. With "none" the backward pass computes the logits again.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise on the CPU; in
            Triton they make the row NaN, and raise under ``LTFAST_CHECKS=1``.
    """
    settings = CrossEntropySettings(label_smoothing, ignore_index, reduction)
    check_cross_entropy(settings)
    check_layer(features, weight, bias)
    _check_target(target, features, weight, ignore_index)
    for name, vector in (("adjustment", adjustment), ("class_weight", class_weight)):
        if vector is not None:
            checks.check_class_vector(vector, weight.T, name)
    if class_weight is not None and target.dim() == 1 and reduction == "mean":
        class_weight = mean_weight(class_weight.to(accumulator(features.dtype)), target.long(), ignore_index)
    return LINEAR_CROSS_ENTROPY(features, weight, bias, target, adjustment, class_weight, settings)


def linear_balanced_bce(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    adjustment: Tensor,
    *,
    class_weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``balanced_bce(F.linear(features, weight, bias), target, adjustment)`` without the logits.

    Args:
        features: (B, D), float32, float64, bfloat16 or float16. Any strides.
        weight: (C, D), of that dtype; under autocast any float dtype.
        bias: (C,), or None.
        target: (B,) integer labels in [0, C) or ``ignore_index``, or (B, C) probabilities, which have no gradient.
        adjustment: (C,): the ``bias`` of ``balanced_bce``. It has no gradient.
        class_weight, pos_weight: (C,) or None: ``weight`` and ``pos_weight`` of ``balanced_bce``.
        label_smoothing, target_threshold, ignore_index, reduction: see ``balanced_bce``.

    Returns:
        The loss, a scalar, or (B,) for "none": float32, or float64 for float64 features. It is differentiable in
        features, weight and bias. With "none" the backward pass computes the logits again.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise on the CPU; in
            Triton they make the row NaN, and raise under ``LTFAST_CHECKS=1``.
    """
    settings = BalancedBceSettings(label_smoothing, target_threshold, ignore_index, reduction)
    check_balanced_bce(settings)
    check_layer(features, weight, bias)
    _check_target(target, features, weight, ignore_index)
    for name, vector in (("adjustment", adjustment), ("class_weight", class_weight), ("pos_weight", pos_weight)):
        if vector is not None or name == "adjustment":
            checks.check_class_vector(vector, weight.T, name)
    return LINEAR_BALANCED_BCE(features, weight, bias, target, adjustment, class_weight, pos_weight, settings)


def linear_agcl(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    class_noise: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
    scale: float = 20.0,
    margin: float = 0.1,
    weight_pos: float = 1.0,
    weight_neg: float = 1.0,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> Tensor:
    """``agcl`` of the cosines between features and weight, without the (B, C) cosines.

    Args:
        features: (B, D), float32, float64, bfloat16 or float16: any length.
        weight: (C, D), of that dtype; under autocast any float dtype: any length.
        target: (B,), integer labels in [0, C), or ``ignore_index``.
        class_noise: (C,), the noise width of each class; None for no noise. The noise is that of ``agcl``.
        class_weight: (C,) or None: the ``weight`` of ``agcl``.
        scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, ignore_index, reduction, generator: see ``agcl``.

    Returns:
        The loss, a scalar, or (B,) for "none": float32, or float64 for float64 features. It is differentiable in
        features and weight. With "none" the backward pass computes the cosines again.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise on the CPU; in
            Triton they make the row NaN, and raise under ``LTFAST_CHECKS=1``.
    """
    settings = AgclSettings(scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, ignore_index, reduction)
    check_agcl(settings)
    check_layer(features, weight, None)
    checks.check_labels(target, features, classes=len(weight), ignore_index=ignore_index)
    seed = None
    if class_noise is not None:
        checks.check_class_vector(class_noise, weight.T, "class_noise")
        seed = draw_seed(features.device, generator)
    if class_weight is not None:
        checks.check_class_vector(class_weight, weight.T, "class_weight")
        if reduction == "mean":
            class_weight = mean_weight(class_weight.to(accumulator(features.dtype)), target.long(), ignore_index)
    return LINEAR_AGCL(features, weight, None, target, class_noise, class_weight, seed, settings)


def check_layer(features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise an error that names the argument of a linear layer that is invalid."""
    checks.check_matrix(features, "features", "(batch, width)", fewest_rows=0)
    checks.check_matrix(weight, "weight", "(classes, width)")
    width = features.shape[1]
    if weight.shape[1] != width:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected (classes, {width}), the features' width")
    checks.check_device(weight, features, "weight")
    if bias is not None:
        checks.check_class_vector(bias, weight.T, "bias", differentiable=True)
    if torch.is_autocast_enabled(features.device.type):
        return
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != features.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}: expected {features.dtype}, the features' dtype")


def _check_target(target: Tensor, features: Tensor, weight: Tensor, ignore_index: int) -> None:
    if not (isinstance(target, Tensor) and target.dim() == 2):
        checks.check_labels(target, features, classes=len(weight), ignore_index=ignore_index)
        return
    shape = (len(features), len(weight))
    if target.shape != shape:
        raise ValueError(f"target has shape {tuple(target.shape)}: expected {shape}, a probability for each class")
    checks.check_probabilities(target, target)
    checks.check_device(target, features, "target")


LINEAR_CROSS_ENTROPY = LinearLoss(CROSS_ENTROPY)
LINEAR_BALANCED_BCE = LinearLoss(BALANCED_BCE)
LINEAR_AGCL = LinearLoss(AGCL, cosine=True)
