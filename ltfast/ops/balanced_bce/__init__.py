r"""Balanced binary cross-entropy of LiVT (Xu et al., "Learning Imbalanced Data with Vision Transformers", CVPR 2023).

.. math::

    z_{ic} = x_{ic} + b_c, \qquad
    L_i = \sum_c w_c \bigl[ (1 - t_{ic}) z_{ic} + (1 + (q_c - 1) t_{ic}) \log(1 + e^{-z_{ic}}) \bigr]

with the bias :math:`b_c = \tau (\log \pi_c - \log(1 - \pi_c))` of the class prior :math:`\pi`, class weights w and
positive weights q. Labels are smoothed inside the kernel and never written out as one-hot rows; one read of the logits
gives loss and gradient.
"""

from torch import Tensor

from ltfast.ops import backends, checks
from ltfast.ops.balanced_bce import reference
from ltfast.ops.fused_loss import HALF_BOUND, register, wants_gradient

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
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy of ``logits + bias``, summed over the classes; see the module's docstring for the formula.

    Args:
        logits: (B, C), float32, float64, bfloat16 or float16. Any strides. They saturate at +-1e30; infinite ones
            make their row's loss NaN.
        target: (B,) integer labels in [0, C), or (B, C) probabilities of any float dtype (MixUp, CutMix), which
            get no gradient.
        bias: (C,): b_c, added to the logits.
        weight: (C,): w_c, or None for 1.
        pos_weight: (C,): q_c, the weight of the positive term, or None for 1.
        label_smoothing: in [0, 1); labels become 1 - s + s/C and s/C. Soft targets are taken as they are.
        target_threshold: targets over it become 1, the others 0 (after smoothing); None leaves them.
        reduction: "mean" over the batch (the sum over the classes stays), "sum", or "none".

    Returns:
        The loss, a scalar, or (B,) for "none": float32, or float64 for float64 logits.

    Raises:
        ValueError, TypeError: a bad argument, named. Labels out of range raise on the CPU; in Triton they make the
            row NaN, and raise under ``LTFAST_CHECKS=1``.
        RuntimeError: in the backward pass, if the logits were changed in place after the loss.
    """
    checks.check_logits(logits)
    checks.check_reduction(reduction)
    checks.check_label_smoothing(label_smoothing)
    if target_threshold is not None:
        checks.check_number("target_threshold", target_threshold)
    labels = not (isinstance(target, Tensor) and target.dim() == 2)
    if labels:
        checks.check_labels(target, logits)
    else:
        checks.check_probabilities(target, logits)
    for name, vector in (("bias", bias), ("weight", weight), ("pos_weight", pos_weight)):
        if vector is not None or name == "bias":
            checks.check_class_vector(vector, logits, name)
    arguments = (logits, target, bias, weight, pos_weight, label_smoothing, target_threshold, reduction)
    if backends.choose("balanced_bce", logits) == "reference":
        if labels:
            checks.check_reference_labels(target, logits.shape[1])
        return reference.balanced_bce(*arguments)
    loss, _ = balanced_bce_op(*arguments, wants_gradient(logits))
    return loss


balanced_bce_op = register(
    "balanced_bce",
    "Tensor logits, Tensor target, Tensor bias, Tensor? weight, Tensor? pos_weight, float label_smoothing, "
    "float? threshold, str reduction, bool with_gradient",
    reference.balanced_bce,
    # |sigmoid - t| <= 1. Weights have no bound that is known here: with them a float16 gradient is stored as it is.
    bound=lambda *inputs: HALF_BOUND if inputs[3] is not None or inputs[4] is not None else 1.0,
)
