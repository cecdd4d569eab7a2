"""``linear_agcl`` with the classes split over the processes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.ops.agcl.settings import AgclSettings, AgclShareSettings, check_settings
from ltfast.ops.core import checks
from ltfast.ops.core.collectives import gather, hand_back
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.linear import check_layer
from ltfast.ops.linear.agcl_share import linear_agcl_share
from ltfast.ops.linear.linear_loss import product_dtype
from ltfast.ops.parallel.agcl import loss_of_shares, places_and_seed
from ltfast.ops.parallel.rows import close, own_classes


def class_parallel_linear_agcl(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    num_classes: int,
    class_noise: Tensor | None = None,
    *,
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
    """``linear_agcl`` with the classes split over W processes; the formula is in ``ltfast.ops.parallel``.

    The noise is that of ``agcl`` of the joined batch with the first process's generator. Memory is O((W B + C_r) D) and
    a block of cosines. Each process receives (W - 1) B D values, 8 (W - 1) (B + 1) bytes of labels and
    40 (W - 1) B bytes of numbers; and in the backward pass, which computes the cosines again, these numbers' gradients
    and (W - 1) B D values.

    Args:
        features: (B, D), any float dtype: of this process's rows, of any length.
        weight: (C_r, D): of this process's classes, of any length.
        target: (B,), integer labels in [0, C) or ``ignore_index``, of this process's rows.
        num_classes: C, of all processes together.
        class_noise: (C_r,), the noise width of each class of this process; None for no noise.
        ignore_index: rows with this label have a loss of 0 and no gradient. The mean of each process is over its other
            rows.
        scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, reduction, generator: see ``agcl``.

    Returns:
        The loss of this process's rows, a scalar, or (B,) for "none": float32, or float64 for float64 features. Each
        process gets the gradient of its part of the weight for the sum of all processes' losses.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise in all processes
            on the CPU; on a GPU they make the row NaN.
    """
    settings = AgclSettings(scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, ignore_index, reduction)
    check_settings(settings)
    check_layer(features, weight, None)
    checks.check_labels(target, features, classes=num_classes, ignore_index=ignore_index)
    classes = own_classes(num_classes, len(weight), "weight")
    if class_noise is not None:
        checks.check_class_vector(class_noise, weight.T, "class_noise")
    place, seed = places_and_seed(target, classes, num_classes, class_noise, ignore_index, generator)
    dtype = product_dtype(features)
    joined, unit = gather(_unit(features, dtype)), _unit(weight, dtype)
    share = linear_agcl_share(
        joined, unit, place, class_noise, seed, AgclShareSettings(classes.start, scale, margin, gamma_neg)
    )
    rows = loss_of_shares(hand_back(share), settings)
    return close(rows, target, num_classes, accumulator(features.dtype), ignore_index, reduction)


def _unit(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows divided by their lengths. Squares of half-precision numbers overflow."""
    return F.normalize(rows.to(accumulator(rows.dtype)), dim=1).to(dtype)
