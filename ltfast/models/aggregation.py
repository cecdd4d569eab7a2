"""Test-time aggregation of the predictions of several sub-models.

Cong et al., "Decoupled Optimisation for Long-Tailed Visual Recognition", AAAI 2024: the weights of a test image
maximise the agreement between the aggregated predictions for two augmented views of it.
"""

import torch
from torch import Tensor


def agreement(first: Tensor, second: Tensor) -> Tensor:
    r"""The agreement matrix of the predictions for two views: :math:`M = P_1 P_2^\top`, symmetrised.

    With :math:`y = \sum_t \lambda_t p_t` for each view, :math:`y_1 \cdot y_2 = \lambda^\top M \lambda`. Learning the
    weights therefore needs only M, which does not depend on the number of classes.

    Args:
        first, second: probabilities (B, T, C) of the T sub-models, one tensor per view.

    Returns:
        M, (B, T, T), float32 (float64 for float64).

    Raises:
        ValueError: the shapes differ, or are not (B, T, C).
    """
    if first.dim() != 3 or first.shape != second.shape:
        raise ValueError(
            f"first has shape {tuple(first.shape)}, second {tuple(second.shape)}: "
            "expected (batch, models, classes) of both"
        )
    wide = first.dtype if first.dtype == torch.float64 else torch.float32
    with torch.autocast(first.device.type, enabled=False):  # autocast would multiply in half precision
        products = first.to(wide) @ second.to(wide).mT
    return (products + products.mT) / 2


def aggregation_weights(agreement: Tensor, *, steps: int = 50, lr: float = 1.0) -> Tensor:
    r"""Learn weights that maximise :math:`\lambda^\top M \lambda`, by gradient ascent from equal weights.

    :math:`\lambda` is the softmax of the learned parameters, so the weights are positive and sum to 1. With
    :math:`g = 2 M \lambda`, the gradient is :math:`\lambda \odot (g - \lambda \cdot g)`.

    Args:
        agreement: (..., T, T), symmetric, from `agreement`; or sums or means of such matrices, for weights shared by
            several images.
        steps: number of gradient ascent steps, at least 0.
        lr: step size, over 0.

    Returns:
        The weights, (..., T).

    Raises:
        ValueError: an argument is invalid; the message names it.
    """
    if agreement.dim() < 2 or agreement.shape[-1] != agreement.shape[-2]:
        raise ValueError(f"agreement has shape {tuple(agreement.shape)}: expected (..., models, models)")
    if steps < 0:
        raise ValueError(f"steps is {steps}: expected at least 0")
    if not lr > 0:
        raise ValueError(f"lr is {lr}: expected a number over 0")
    # The images are the last dimension: T is small, so each operation then runs over contiguous rows of images.
    rows = agreement.detach().reshape(-1, *agreement.shape[-2:]).permute(1, 2, 0).contiguous() * (2 * lr)
    learned = rows.new_zeros(rows.shape[1:])
    weights = learned.softmax(0)
    for _ in range(steps):
        gradient = (rows * weights).sum(1)
        learned += weights * (gradient - (weights * gradient).sum(0))
        weights = learned.softmax(0)
    return weights.mT.reshape(agreement.shape[:-1])
