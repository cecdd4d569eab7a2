r"""Losses of a classifier whose classes are split over the processes of ``torch.distributed``, for more classes than
one device holds (split as by An et al., "Partial FC: Training 10 Million Identities on a Single Machine", ICCVW 2021).

Process r has the classes ``ltfast.ops.distributed.class_ranges(num_classes)[r]``, and the rows of all processes: the
joined batch. Of each row it computes what its classes contribute, a few numbers; those go to the process whose row it
is, which adds them up:

.. math::

    \mathrm{lse} = \log \sum_r e^{\mathrm{lse}_r}, \qquad
    \sum_c p_c^\gamma \log p_c = \sum_r e^{\gamma \delta_r} (S_r + \delta_r E_r), \quad \delta_r = m_r - \mathrm{lse}

with :math:`m_r` the largest of its logits, :math:`E_r = \sum_c e^{\gamma (v_c - m_r)}` and
:math:`S_r = \sum_c (v_c - m_r) e^{\gamma (v_c - m_r)}`. The numbers' gradients go the other way.

Each process's loss is that of its own rows, as ever under ``DistributedDataParallel``: the mean of the processes'
losses is the loss of the joined batch (for "sum", their sum is), and averaged over the processes the gradients of
parameters that all of them have are those of the joined batch. All processes must call, with batches of one size.
"""

import torch
from torch import Tensor

from ltfast.ops import backends, checks
from ltfast.ops.agcl import agcl_share_op, check_settings
from ltfast.ops.agcl import reference as agcl_reference
from ltfast.ops.distributed import class_ranges, gather, hand_back, rank, world_size
from ltfast.ops.fused_loss import accumulator, reduce, wants_gradient
from ltfast.ops.noise import draw_seed
from ltfast.ops.vmf import check_arguments, vmf_log_sum_exp_op, vmf_ratio_op
from ltfast.ops.vmf import reference as vmf_reference

__all__ = ["class_parallel_agcl", "class_parallel_vmf_cross_entropy"]


def class_parallel_agcl(
    cosine: Tensor,
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
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> Tensor:
    """``agcl`` with the classes split over W processes; see the module's docstring.

    The noise is that of ``agcl`` of the joined batch with the first process's generator. The logits are read once, and
    once more in the backward pass, which writes their gradient. Each process receives 8 (W - 1) (B + 1) bytes of labels
    and 40 (W - 1) B bytes of numbers, and as many in the backward pass.

    Args:
        cosine: (W B, C_r), any float dtype: of the joined batch the logits for this process's classes, as
            ``ltfast.models.ClassParallelCosineClassifier`` gives them.
        target: (B,), integer labels in [0, C) of this process's rows.
        num_classes: C, of all processes together.
        class_noise: (C_r,): the width of the cloud of each of this process's classes; None for no noise.
        scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, reduction, generator: see ``agcl``.

    Returns:
        The loss of this process's rows, a scalar, or (B,) for "none": float32, or float64 for float64 logits.

    Raises:
        ValueError, TypeError: a bad argument, named. Labels out of range raise in all processes on the CPU; on a GPU
            they make the row NaN.
    """
    checks.check_logits(cosine, "cosine")
    check_settings(scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, reduction)
    classes = _own_classes(num_classes, cosine.shape[1], "cosine")
    _check_rows(cosine, target, num_classes, "cosine")
    if class_noise is not None:
        checks.check_class_vector(class_noise, cosine, "class_noise")
    seed = target.new_zeros(1, dtype=torch.int64) if class_noise is None else draw_seed(cosine.device, generator)
    labels = gather(torch.cat([target.long(), seed])).view(world_size(), -1)
    shared_seed = labels[0, -1:] if class_noise is not None else None
    targets = _joined_labels(labels[:, :-1].flatten(), num_classes)
    place = torch.where((targets >= classes.start) & (targets < classes.stop), targets - classes.start, -1)
    arguments = (cosine, place, class_noise, shared_seed, classes.start, scale, margin, gamma_neg)
    reference = backends.choose("class_parallel_agcl", cosine) == "reference"
    share = agcl_reference.agcl_share if reference else agcl_share_op
    parts = hand_back(share(*arguments))

    peaks, own, masses, weights, weighted = parts.unbind(2)
    peaks = peaks.detach()
    peak = peaks.amax(0)
    shift = (scale * (peaks - peak)).clamp(min=agcl_reference.LOWEST)
    t_own = (scale * (own.sum(0) - peak)).clamp(min=agcl_reference.LOWEST)
    faded = torch.where(shift > agcl_reference.LOWEST, torch.exp(gamma_neg * shift), 0)
    mass = (shift.exp() * masses).sum(0)
    total = mass + t_own.exp()
    log_sum = total.log()
    # as the reference does: kept from 0, where the derivative of a power under 1 is infinite
    rest = (mass / total).clamp(min=torch.finfo(torch.float32).tiny)
    positive = rest**gamma_pos * (t_own - log_sum)
    negative = torch.exp(-gamma_neg * log_sum) * (faded * (weighted + (shift - log_sum) * weights)).sum(0)
    rows = -(weight_pos * positive + weight_neg * negative)
    return _close(rows, target, num_classes, cosine.dtype, reduction)


def class_parallel_vmf_cross_entropy(
    features: Tensor,
    target: Tensor,
    directions: Tensor,
    kappa: Tensor,
    num_classes: int,
    *,
    log_prior: Tensor | None = None,
    temperature: float = 0.1,
    reduction: str = "mean",
) -> Tensor:
    """``vmf_cross_entropy`` with the classes split over W processes; see the module's docstring.

    Memory is O((W B + C_r) D). Each process receives (W - 1) B D values and 8 (W - 1) B bytes of labels, then
    16 (W - 1) B bytes of numbers; and in the backward pass these numbers' gradients and (W - 1) B D values.

    Args:
        features: (B, D), D at least 2, any float dtype: of this process's rows.
        target: (B,), their integer labels in [0, C).
        directions: (C_r, D), any float dtype: of this process's classes. No gradient reaches them.
        kappa: (C_r,), any float dtype: their concentrations. No gradient reaches them.
        num_classes: C, of all processes together.
        log_prior: (C_r,), added to their logits, or None.
        temperature, reduction: see ``vmf_cross_entropy``.

    Returns:
        The loss of this process's rows, a scalar, or (B,) for "none": float32, or float64 for float64 features.

    Raises:
        ValueError, TypeError: a bad argument, named. Labels out of range raise in all processes on the CPU; on a GPU
            they make the row NaN.
    """
    check_arguments(features, directions, kappa, temperature)
    checks.check_reduction(reduction)
    checks.check_labels(target, features, classes=num_classes)
    classes = _own_classes(num_classes, len(directions), "directions")
    if log_prior is not None:
        checks.check_class_vector(log_prior, directions.T, "log_prior")
    dtype = accumulator(features.dtype)
    joined = gather(features).to(dtype)
    targets = _joined_labels(gather(target.long()), num_classes)
    reference = backends.choose("class_parallel_vmf_cross_entropy", features) == "reference"
    if reference:
        lse = vmf_reference.vmf_log_sum_exp(joined, directions, kappa, log_prior, temperature, "none")
    else:
        wanted = wants_gradient(joined)
        lse, _ = vmf_log_sum_exp_op(joined, directions, kappa, log_prior, temperature, "none", wanted)

    # the logit of each row's label, in the process that has its class: a "class" a row, in one row
    place = (targets - classes.start).clamp(0, len(classes) - 1)
    k = vmf_reference.saturated(kappa.to(dtype)[place])
    z = vmf_reference.saturated(joined)
    products = (z * directions[place].to(dtype)).sum(1)
    increments = (2 / temperature * k * products + z.square().sum(1) / temperature**2)[None]
    nu = features.shape[1] / 2 - 1
    if reference:
        own = vmf_reference.vmf_ratio(increments, k, nu)[0]
    else:
        own = vmf_ratio_op(increments, k, nu, wants_gradient(increments))[0][0]
    if log_prior is not None:
        own = own + log_prior.to(dtype)[place]
    own = torch.where((targets >= classes.start) & (targets < classes.stop), own, 0)

    parts = hand_back(torch.stack([lse, own], dim=1).double())
    rows = parts[..., 0].logsumexp(0) - parts[..., 1].sum(0)
    return _close(rows, target, num_classes, features.dtype, reduction)


def _own_classes(num_classes: int, number: int, name: str) -> range:
    classes = class_ranges(num_classes)[rank()]
    if number != len(classes):
        where = f"{classes.start} to {classes.stop - 1} of {num_classes}"
        raise ValueError(f"{name} is for {number} classes: expected {len(classes)}, this process's, {where}")
    return classes


def _check_rows(joined: Tensor, target: Tensor, num_classes: int, name: str) -> None:
    processes = world_size()
    if joined.shape[0] % processes:
        expected = f"{processes} times as many as each process has"
        raise ValueError(f"{name} has {joined.shape[0]} rows: expected {expected}, those of the joined batch")
    checks.check_labels(target, joined[: joined.shape[0] // processes], classes=num_classes)


def _joined_labels(targets: Tensor, num_classes: int) -> Tensor:
    """Read on a CPU, in all processes alike: none is left waiting for another that found a label out of range."""
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        checks.check_label_values(targets, num_classes)
    return targets


def _close(rows: Tensor, target: Tensor, num_classes: int, dtype: torch.dtype, reduction: str) -> Tensor:
    """NaN for a label out of range, which no process has."""
    rows = rows.masked_fill((target < 0) | (target >= num_classes), torch.nan)
    return reduce(rows.to(accumulator(dtype)), reduction)
