r"""Balanced binary cross-entropy of LiVT (Xu et al., "Learning Imbalanced Data with Vision Transformers", CVPR 2023).

.. math::

    z_{ic} = x_{ic} + b_c, \qquad
    L_i = \sum_c w_c \bigl[ (1 - t_{ic}) z_{ic} + (1 + (q_c - 1) t_{ic}) \log(1 + e^{-z_{ic}}) \bigr]

with the bias :math:`b_c = \tau (\log \pi_c - \log(1 - \pi_c))` of the class prior :math:`\pi`, class weights w and
positive weights q. The
kernel smooths the labels and never stores them as one-hot rows. One read of the logits gives the loss and the gradient.
"""

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from ltfast.ops.balanced_bce import reference
from ltfast.ops.balanced_bce.settings import BalancedBceSettings, check_settings
from ltfast.ops.core import checks
from ltfast.ops.core.dispatch import Kernels
from ltfast.ops.core.fused_loss import HALF_BOUND, FusedLoss

__all__ = ["balanced_bce"]


def balanced_bce(
    logits: Tensor,
    target: Tensor,
    bias: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy of ``logits + bias``, summed over the classes; see the module's docstring for the formula.

    Args:
        logits: (B, C), float32, float64, bfloat16 or float16. Any strides. Logits saturate at +-1e30; infinite logits
            make the loss of their row NaN.
        target: (B,) integer labels in [0, C) or ``ignore_index``, or (B, C) probabilities of any float dtype (MixUp,
            CutMix), which have no gradient.
        bias: (C,): b_c, added to the logits.
        weight: (C,): w_c, or None for 1.
        pos_weight: (C,): q_c, the weight of the positive term, or None for 1.
        label_smoothing: s in [0, 1): targets become (1 - s) t + s/C, as in ``nn.CrossEntropyLoss``.
        target_threshold: after smoothing, targets above it become 1 and the others 0; None for no threshold.
        ignore_index: rows with this label have a loss of 0 and no gradient, and do not count in the mean, as in
            ``nn.CrossEntropyLoss``. Soft targets are never ignored.
        reduction: "mean" over the batch (of the sums over the classes), "sum", or "none".

    Returns:
        The loss, a scalar, or (B,) for "none": float32, or float64 for float64 logits.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise on the CPU; in
            Triton they make the row NaN, and raise under ``LTFAST_CHECKS=1``.
        RuntimeError: in the backward pass, if the logits were changed in place after the loss.
    """
    settings = BalancedBceSettings(label_smoothing, target_threshold, ignore_index, reduction)
    check_settings(settings)
    check_arguments(logits, target, bias, weight, pos_weight, ignore_index)
    return BALANCED_BCE(logits, target, bias, weight, pos_weight, settings)


def check_arguments(
    logits: Tensor,
    target: Tensor,
    bias: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    ignore_index: int,
    *,
    name: str = "logits",
) -> None:
    """Raise an error that names the tensor that the loss cannot take; ``name`` is the name of the logits."""
    checks.check_logits(logits, name)
    if isinstance(target, Tensor) and target.dim() == 2:
        checks.check_probabilities(target, logits)
    else:
        checks.check_labels(target, logits, ignore_index=ignore_index)
    checks.check_class_vector(bias, logits, "bias")
    for what, vector in (("weight", weight), ("pos_weight", pos_weight)):
        if vector is not None:
            checks.check_class_vector(vector, logits, what)


def _native() -> ModuleType:
    from ltfast.ops.balanced_bce import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.balanced_bce import triton

    return triton


def _gradient_bound(_: Tensor, others: Sequence[Tensor | None], settings: BalancedBceSettings) -> float:
    """|sigmoid - t| <= 1. Weights have no bound that is known here: with them a float16 gradient is stored as it is."""
    weight, pos_weight = others[2:]
    return 1.0 if weight is None and pos_weight is None else HALF_BOUND


BALANCED_BCE = FusedLoss(
    "balanced_bce",
    reference.balanced_bce,
    Kernels(_native, _triton),
    "Tensor logits, Tensor target, Tensor bias, Tensor? weight, Tensor? pos_weight",
    BalancedBceSettings,
    _gradient_bound,
)
