r"""Softmax cross-entropy of logits with a bias for each class (logit adjustment: Menon et al., ICLR 2021).

.. math::

    z_{ic} = x_{ic} + b_c, \qquad a_{ic} = w_c \bigl( (1 - s) t_{ic} + s / C \bigr), \qquad
    L_i = \sum_c a_{ic} \Bigl( \log \sum_k e^{z_{ik}} - z_{ic} \Bigr)

with the bias b, class weights w, the label smoothing s and the targets t, which are one-hot for labels. The gradient is
:math:`A_i p_{ic} - a_{ic}` with :math:`A_i = \sum_c a_{ic}` and the softmax p of z. The sum ``logits + bias``
and one-hot rows are never stored.
"""

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from ltfast.ops.core import checks
from ltfast.ops.core.dispatch import Kernels
from ltfast.ops.core.fused_loss import HALF_BOUND, FusedLoss
from ltfast.ops.core.tensors import accumulator, mean_weight
from ltfast.ops.cross_entropy import reference
from ltfast.ops.cross_entropy.settings import CrossEntropySettings, check_settings

__all__ = ["cross_entropy"]


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``torch.nn.functional.cross_entropy(logits + bias, target, ...)``; see the module's docstring for the formula.

    Args:
        logits: (B, C), float32, float64, bfloat16 or float16. Any strides. The sum with the bias counts as at most
            about 1e30 below the largest of its row, so that finite logits give a finite loss. A logit of -inf excludes
            its class: its probability is 0, and the loss is infinite if it is the label. With soft targets or label
            smoothing, -inf saturates as finite logits do. A logit of +inf, or a row of -inf alone, makes the loss of
            its row NaN.
        target: (B,) integer labels in [0, C) or ``ignore_index``, or (B, C) probabilities of any float dtype (MixUp,
            CutMix), which have no gradient.
        bias: (C,): b_c, added to the logits, or None for 0. It should be below 1e30: a sum beyond the range of the
            arithmetic's dtype is infinite.
        weight: (C,): w_c, or None for 1.
        label_smoothing: s in [0, 1): targets become (1 - s) t + s/C.
        ignore_index: rows with this label have a loss of 0 and no gradient, and do not count in the mean, as in
            ``nn.CrossEntropyLoss``. Soft targets are never ignored.
        reduction: "mean", "sum", or "none". The mean over labels divides by the sum of their weights, the mean over
            soft targets by B.

    Returns:
        The loss, a scalar, or (B,) for "none": float32, or float64 for float64 logits.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise on the CPU; in
            Triton they make the row NaN, and raise under ``LTFAST_CHECKS=1``.
        RuntimeError: in the backward pass, if the logits were changed in place after the loss.
    """
    settings = CrossEntropySettings(label_smoothing, ignore_index, reduction)
    check_settings(settings)
    check_arguments(logits, target, bias, weight, ignore_index)
    if weight is not None and target.dim() == 1 and reduction == "mean":
        weight = mean_weight(weight.to(accumulator(logits.dtype)), target.long(), ignore_index)
    return CROSS_ENTROPY(logits, target, bias, weight, settings)


def check_arguments(
    logits: Tensor, target: Tensor, bias: Tensor | None, weight: Tensor | None, ignore_index: int
) -> None:
    """Raise an error that names the tensor that the loss cannot take."""
    checks.check_logits(logits)
    if isinstance(target, Tensor) and target.dim() == 2:
        checks.check_probabilities(target, logits)
    else:
        checks.check_labels(target, logits, ignore_index=ignore_index)
    for what, vector in (("bias", bias), ("weight", weight)):
        if vector is not None:
            checks.check_class_vector(vector, logits, what)


def _native() -> ModuleType:
    from ltfast.ops.cross_entropy import native

    return native


def _triton() -> ModuleType:
    from ltfast.ops.cross_entropy import triton

    return triton


def _gradient_bound(logits: Tensor, others: Sequence[Tensor | None], settings: CrossEntropySettings) -> float:
    """|A p_c - a_c| <= max(A, a_c): 1 for labels, and at most C for soft targets in [0, 1], whose sum need not be 1.
    Weights have no bound that is known here: with them a float16 gradient is stored as it is."""
    target, _, weight = others
    if weight is not None:
        return HALF_BOUND
    return 1.0 if target is None or target.dim() == 1 else min(float(logits.shape[1]), HALF_BOUND)


CROSS_ENTROPY = FusedLoss(
    "cross_entropy",
    reference.cross_entropy,
    Kernels(_native, _triton),
    "Tensor logits, Tensor target, Tensor? bias, Tensor? weight",
    CrossEntropySettings,
    _gradient_bound,
)
