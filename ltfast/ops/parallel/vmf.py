"""``vmf_cross_entropy`` with the classes split over the processes."""

import torch
from torch import Tensor

from ltfast.ops.core import checks
from ltfast.ops.core.collectives import gather, hand_back
from ltfast.ops.core.dispatch import choose
from ltfast.ops.core.tensors import accumulator, wants_gradient
from ltfast.ops.parallel.rows import close, joined_labels, own_classes
from ltfast.ops.vmf import VMF_CROSS_ENTROPY, check_arguments, reference, vmf_ratio_op
from ltfast.ops.vmf.settings import VmfSettings


def class_parallel_vmf_cross_entropy(
    features: Tensor,
    target: Tensor,
    directions: Tensor,
    kappa: Tensor,
    num_classes: int,
    *,
    log_prior: Tensor | None = None,
    temperature: float = 0.1,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``vmf_cross_entropy`` with the classes split over W processes; the formula is in ``ltfast.ops.parallel``.

    Memory is O((W B + C_r) D). Each process receives (W - 1) B D values and 8 (W - 1) B bytes of labels, then
    16 (W - 1) B bytes of numbers; and in the backward pass these numbers' gradients and (W - 1) B D values.

    Args:
        features: (B, D), D at least 2, any float dtype: of this process's rows.
        target: (B,), their integer labels in [0, C), or ``ignore_index``.
        directions: (C_r, D), any float dtype: of this process's classes. No gradient reaches them.
        kappa: (C_r,), any float dtype: their concentrations. No gradient reaches them.
        num_classes: C, of all processes together.
        log_prior: (C_r,), added to their logits, or None.
        ignore_index: rows with this label have a loss of 0 and no gradient. The mean of each process is over its other
            rows.
        temperature, reduction: see ``vmf_cross_entropy``.

    Returns:
        The loss of this process's rows, a scalar, or (B,) for "none": float32, or float64 for float64 features.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise in all processes
            on the CPU; on a GPU they make the row NaN.
    """
    check_arguments(features, directions, kappa, temperature)
    checks.check_reduction(reduction)
    checks.check_labels(target, features, classes=num_classes, ignore_index=ignore_index)
    classes = own_classes(num_classes, len(directions), "directions")
    if log_prior is not None:
        checks.check_class_vector(log_prior, directions.T, "log_prior")
    dtype = accumulator(features.dtype)
    joined = gather(features).to(dtype)
    targets = joined_labels(gather(target.long()), num_classes, ignore_index)
    uses_reference = choose("class_parallel_vmf_cross_entropy", features) == "reference"
    lse = VMF_CROSS_ENTROPY(joined, None, directions, kappa, log_prior, VmfSettings(temperature, ignore_index, "none"))

    # the logit of each row's label, in the process that has its class: a "class" a row, in one row
    place = (targets - classes.start).clamp(0, len(classes) - 1)
    k = reference.saturated(kappa.to(dtype)[place])
    z = reference.saturated(joined)
    products = (z * directions[place].to(dtype)).sum(1)
    increments = (2 / temperature * k * products + z.square().sum(1) / temperature**2)[None]
    nu = features.shape[1] / 2 - 1
    if uses_reference:
        own = reference.vmf_ratio(increments, k, nu)[0]
    else:
        own = vmf_ratio_op(increments, k, nu, wants_gradient(increments))[0][0]
    if log_prior is not None:
        own = own + log_prior.to(dtype)[place]
    own = torch.where((targets >= classes.start) & (targets < classes.stop), own, 0)

    parts = hand_back(torch.stack([lse, own], dim=1).double())
    rows = parts[..., 0].logsumexp(0) - parts[..., 1].sum(0)
    return close(rows, target, num_classes, features.dtype, ignore_index, reduction)
