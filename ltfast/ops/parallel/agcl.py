"""``agcl`` with the classes split over the processes."""

import torch
from torch import Tensor

from ltfast.ops.agcl import CLASS_PARALLEL_AGCL, agcl_share_op, reference
from ltfast.ops.agcl.settings import AgclSettings, AgclShareSettings, check_settings
from ltfast.ops.core import checks
from ltfast.ops.core.collectives import gather, hand_back, world_size
from ltfast.ops.noise import draw_seed
from ltfast.ops.parallel.rows import check_rows, close, joined_labels, own_classes


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
    ignore_index: int = -100,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> Tensor:
    """``agcl`` with the classes split over W processes; the formula is in ``ltfast.ops.parallel``.

    The noise is that of ``agcl`` of the joined batch with the first process's generator. The logits are read once, and
    once more in the backward pass, which writes their gradient. Each process receives 8 (W - 1) (B + 1) bytes of labels
    and 40 (W - 1) B bytes of numbers, and as many in the backward pass.

    Args:
        cosine: (W B, C_r), any float dtype: the logits of the joined batch for the classes of this process, from
            ``ltfast.models.ClassParallelCosineClassifier``.
        target: (B,), integer labels in [0, C) or ``ignore_index``, of the rows of this process.
        num_classes: C, of all processes together.
        class_noise: (C_r,), the noise width of each class of this process; None for no noise.
        ignore_index: rows with this label have a loss of 0 and no gradient. The mean of each process is over its other
            rows.
        scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, reduction, generator: see ``agcl``.

    Returns:
        The loss of this process's rows, a scalar, or (B,) for "none": float32, or float64 for float64 logits.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it. Labels out of range raise in all processes
            on the CPU; on a GPU they make the row NaN.
    """
    checks.check_logits(cosine, "cosine")
    check_settings(AgclSettings(scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, ignore_index, reduction))
    classes = own_classes(num_classes, cosine.shape[1], "cosine")
    check_rows(cosine, target, num_classes, "cosine", ignore_index)
    if class_noise is not None:
        checks.check_class_vector(class_noise, cosine, "class_noise")
    seed = target.new_zeros(1, dtype=torch.int64) if class_noise is None else draw_seed(cosine.device, generator)
    labels = gather(torch.cat([target.long(), seed.to(target.device)])).view(world_size(), -1)
    shared_seed = labels[0, -1:] if class_noise is not None else None
    targets = joined_labels(labels[:, :-1].flatten(), num_classes, ignore_index)
    place = torch.where((targets >= classes.start) & (targets < classes.stop), targets - classes.start, -1)
    tensors = (cosine, place, class_noise, shared_seed)
    settings = AgclShareSettings(classes.start, scale, margin, gamma_neg)
    if CLASS_PARALLEL_AGCL.choose(cosine) == "reference":
        share = reference.agcl_share(*tensors, settings)
    else:
        share = agcl_share_op(*tensors, *settings)
    parts = hand_back(share)

    peaks, own, masses, weights, weighted = parts.unbind(2)
    peaks = peaks.detach()
    peak = peaks.amax(0)
    shift = (scale * (peaks - peak)).clamp(min=reference.LOWEST)
    t_own = (scale * (own.sum(0) - peak)).clamp(min=reference.LOWEST)
    faded = torch.where(shift > reference.LOWEST, torch.exp(gamma_neg * shift), 0)
    mass = (shift.exp() * masses).sum(0)
    total = mass + t_own.exp()
    log_sum = total.log()
    # as the reference does: kept from 0, where the derivative of a power under 1 is infinite
    rest = (mass / total).clamp(min=torch.finfo(torch.float32).tiny)
    positive = rest**gamma_pos * (t_own - log_sum)
    negative = torch.exp(-gamma_neg * log_sum) * (faded * (weighted + (shift - log_sum) * weights)).sum(0)
    rows = -(weight_pos * positive + weight_neg * negative)
    return close(rows, target, num_classes, cosine.dtype, ignore_index, reduction)
