"""Test-time weights for the predictions of several sub-models.

Cong et al., "Decoupled Optimisation for Long-Tailed Visual Recognition", AAAI 2024: the weights of a test image are
those under which the aggregated predictions of two augmented views of it agree best.
"""

import torch
from torch import Tensor


def agreement(first: Tensor, second: Tensor) -> Tensor:
    r"""What is needed of two views' predictions to learn any weights: :math:`M = P_1 P_2^\top`, symmetrised.

    With :math:`y = \sum_t \lambda_t p_t` for either view, :math:`y_1 \cdot y_2 = \lambda^\top M \lambda`: the classes
    do not appear in it any more.

    Args:
        first, second: probabilities (B, T, C) of the T sub-models for a view each.

    Returns:
        (B, T, T), float32 or float64.
    """
    if first.dim() != 3 or first.shape != second.shape:
        raise ValueError(
            f"first has shape {tuple(first.shape)}, second {tuple(second.shape)}: "
            "expected (batch, models, classes) of both"
        )
    wide = first.dtype if first.dtype == torch.float64 else torch.float32
    with torch.autocast(first.device.type, enabled=False):  # it would multiply in half precision
        products = first.to(wide) @ second.to(wide).mT
    return (products + products.mT) / 2


def aggregation_weights(agreement: Tensor, *, steps: int = 50, lr: float = 1.0) -> Tensor:
    r"""Weights that maximise :math:`\lambda^\top M \lambda`, by gradient ascent from equal weights.

    :math:`\lambda` is the softmax of what is learned, so the weights are positive and sum to 1. In closed form, with
    :math:`g = 2 M \lambda`, the gradient is :math:`\lambda \odot (g - \lambda \cdot g)`.

    Args:
        agreement: (..., T, T), symmetric, from `agreement`; or sums or means of such matrices, for weights that
            several images share.
        steps: of gradient ascent, at least 0.
        lr: their size, over 0.

    Returns:
        (..., T).
    """
    if agreement.dim() < 2 or agreement.shape[-1] != agreement.shape[-2]:
        raise ValueError(f"agreement has shape {tuple(agreement.shape)}: expected (..., models, models)")
    if steps < 0:
        raise ValueError(f"steps is {steps}: expected at least 0")
    if not lr > 0:
        raise ValueError(f"lr is {lr}: expected a number over 0")
    # images last: T is small, and each operation then runs over rows of all images
    rows = agreement.detach().reshape(-1, *agreement.shape[-2:]).permute(1, 2, 0).contiguous() * (2 * lr)
    learned = rows.new_zeros(rows.shape[1:])
    weights = learned.softmax(0)
    for _ in range(steps):
        gradient = (rows * weights).sum(1)
        learned += weights * (gradient - (weights * gradient).sum(0))
        weights = learned.softmax(0)
    return weights.mT.reshape(agreement.shape[:-1])
