"""``linear_cross_entropy`` and ``linear_balanced_bce`` with the classes split over the processes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ltfast.ops.balanced_bce.reference import label_values
from ltfast.ops.balanced_bce.settings import BalancedBceSettings, check_settings
from ltfast.ops.core import checks
from ltfast.ops.core.collectives import gather, hand_back
from ltfast.ops.core.dispatch import choose
from ltfast.ops.core.tensors import accumulator
from ltfast.ops.linear import check_layer, linear_balanced_bce, linear_cross_entropy
from ltfast.ops.parallel.rows import close, joined_labels, own_classes


def class_parallel_linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    num_classes: int,
    *,
    adjustment: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``linear_cross_entropy`` with the classes split over W processes; the formula is in ``ltfast.ops.parallel``.

    Memory is O((W B + C_r) D) and a block of logits. Each process receives (W - 1) B D values and 8 (W - 1) B bytes of
    labels, then 24 (W - 1) B bytes of numbers; and in the backward pass, which computes the logits again, these
    numbers' gradients and (W - 1) B D values.

    Args:
        features: (B, D), any float dtype: of this process's rows.
        weight: (C_r, D): of this process's classes.
        bias: (C_r,), or None.
        target: (B,), the integer labels in [0, C) of this process's rows, or ``ignore_index``.
        num_classes: C, of all processes together.
        adjustment: (C_r,), added to the logits of this process's classes, or None. It has no gradient.
        ignore_index: rows with this label have a loss of 0 and no gradient. The mean of each process is over its other
            rows.
        label_smoothing, reduction: see ``linear_cross_entropy``.

    Returns:
        The loss of this process's rows, a scalar, or (B,) for "none": float32, or float64 for float64 features. Each
        process gets the gradient of its part of the weight for the sum of all processes' losses.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise in all processes
            on the CPU; on a GPU they make the row NaN.
    """
    check_layer(features, weight, bias)
    checks.check_reduction(reduction)
    checks.check_label_smoothing(label_smoothing)
    checks.check_labels(target, features, classes=num_classes, ignore_index=ignore_index)
    classes = own_classes(num_classes, len(weight), "weight")
    if adjustment is not None:
        checks.check_class_vector(adjustment, weight.T, "adjustment")
    choose("class_parallel_linear_cross_entropy", features, weight)  # refuses what the kernels cannot take
    joined, place, is_own = _joined(features, target, classes, num_classes, ignore_index)

    # a class of this process for each row: the label's, or any; its logit makes the log-sum-exp of the loss
    losses = linear_cross_entropy(joined, weight, bias, place, adjustment=adjustment, reduction="none")
    z, total = _logits(joined, weight, (bias, adjustment), place, losses.dtype)
    parts = hand_back(torch.stack([losses + z, torch.where(is_own, z, 0), total], dim=1).double())
    lse, own, totals = parts[..., 0].logsumexp(0), parts[..., 1].sum(0), parts[..., 2].sum(0)
    rows = lse - (1 - label_smoothing) * own - label_smoothing / num_classes * totals
    return close(rows, target, num_classes, accumulator(features.dtype), ignore_index, reduction)


def class_parallel_linear_balanced_bce(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    num_classes: int,
    adjustment: Tensor,
    *,
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``linear_balanced_bce`` with the classes split over W processes.

    The loss of a row is the sum of those of the processes' classes. Memory is O((W B + C_r) D) and a block of logits.
    Each process receives (W - 1) B D values and 8 (W - 1) B bytes of labels, then 8 (W - 1) B bytes of numbers; and in
    the backward pass, which computes the logits again, these numbers' gradients and (W - 1) B D values.

    Args:
        features: (B, D), any float dtype: of this process's rows.
        weight: (C_r, D): of this process's classes.
        bias: (C_r,), or None.
        target: (B,), the integer labels in [0, C) of this process's rows, or ``ignore_index``.
        num_classes: C, of all processes together.
        adjustment: (C_r,), added to the logits of this process's classes. It has no gradient.
        ignore_index: rows with this label have a loss of 0 and no gradient. The mean of each process is over its other
            rows.
        label_smoothing, target_threshold, reduction: see ``linear_balanced_bce``.

    Returns:
        The loss of this process's rows, a scalar, or (B,) for "none": float32, or float64 for float64 features. Each
        process gets the gradient of its part of the weight for the sum of all processes' losses.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise in all processes
            on the CPU; on a GPU they make the row NaN.
    """
    settings = BalancedBceSettings(label_smoothing, target_threshold, ignore_index, reduction)
    check_settings(settings)
    check_layer(features, weight, bias)
    checks.check_labels(target, features, classes=num_classes, ignore_index=ignore_index)
    classes = own_classes(num_classes, len(weight), "weight")
    checks.check_class_vector(adjustment, weight.T, "adjustment")
    choose("class_parallel_linear_balanced_bce", features, weight)  # refuses what the kernels cannot take
    joined, place, is_own = _joined(features, target, classes, num_classes, ignore_index)

    # with any class as the label, and no smoothing: sum_c softplus(z_c) - z_label
    losses = linear_balanced_bce(joined, weight, bias, place, adjustment, reduction="none")
    z, total = _logits(joined, weight, (bias, adjustment), place, losses.dtype)
    on, off = label_values(num_classes, settings)
    parts = hand_back((losses + torch.where(is_own, (1 - on + off) * z, z) - off * total).double())
    return close(parts.sum(0), target, num_classes, accumulator(features.dtype), ignore_index, reduction)


def _joined(
    features: Tensor, target: Tensor, classes: range, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The joined batch, (W B, D); for each of its rows a place among this process's classes, which is the label's if
    the process has it; and whether it has it."""
    joined = gather(features)
    targets = joined_labels(gather(target.long()), num_classes, ignore_index)
    is_own = (targets >= classes.start) & (targets < classes.stop)
    return joined, torch.where(is_own, targets - classes.start, 0), is_own


def _logits(
    joined: Tensor, weight: Tensor, vectors: Sequence[Tensor | None], place: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Each row's logit at ``place``, and the sum of its logits, (W B,)."""
    z = (joined.to(dtype) * weight[place].to(dtype)).sum(1)
    total = joined.to(dtype) @ weight.to(dtype).sum(0)
    for vector in vectors:
        if vector is not None:
            z, total = z + vector.to(dtype)[place], total + vector.to(dtype).sum()
    return z, total
