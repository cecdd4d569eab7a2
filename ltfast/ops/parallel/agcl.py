"""``agcl`` with the classes split over the processes."""

import torch
from torch import Tensor

from ltfast.ops.agcl import CLASS_PARALLEL_AGCL, agcl_share_op, reference
from ltfast.ops.agcl.merge import merged_shares
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
    settings = AgclSettings(scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, ignore_index, reduction)
    check_settings(settings)
    classes = own_classes(num_classes, cosine.shape[1], "cosine")
    check_rows(cosine, target, num_classes, "cosine", ignore_index)
    if class_noise is not None:
        checks.check_class_vector(class_noise, cosine, "class_noise")
    place, seed = places_and_seed(target, classes, num_classes, class_noise, ignore_index, generator)
    tensors = (cosine, place, class_noise, seed)
    share_settings = AgclShareSettings(classes.start, scale, margin, gamma_neg)
    if CLASS_PARALLEL_AGCL.choose(cosine) == "reference":
        share = reference.agcl_share(*tensors, share_settings)
    else:
        share = agcl_share_op(*tensors, *share_settings)
    rows = loss_of_shares(hand_back(share), settings)
    return close(rows, target, num_classes, cosine.dtype, ignore_index, reduction)


def places_and_seed(
    target: Tensor,
    classes: range,
    num_classes: int,
    class_noise: Tensor | None,
    ignore_index: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor | None]:
    """The places of the joined batch's labels among this process's classes, (W B,), or -1; and the seed of the first
    process, or None for no noise. One exchange sends both."""
    seed = target.new_zeros(1, dtype=torch.int64) if class_noise is None else draw_seed(target.device, generator)
    labels = gather(torch.cat([target.long(), seed.to(target.device)])).view(world_size(), -1)
    shared_seed = labels[0, -1:] if class_noise is not None else None
    targets = joined_labels(labels[:, :-1].flatten(), num_classes, ignore_index)
    place = torch.where((targets >= classes.start) & (targets < classes.stop), targets - classes.start, -1)
    return place, shared_seed


def loss_of_shares(parts: Tensor, settings: AgclSettings) -> Tensor:
    """The losses (B,) of this process's rows, from the contributions of the W shares of the classes, (W, B, 5)."""
    scale, gamma_neg = settings.scale, settings.gamma_neg
    peak, own, mass, weight, weighted = merged_shares(parts, scale, gamma_neg).unbind(1)
    t_own = (scale * (own - peak)).clamp(min=reference.LOWEST)
    total = mass + t_own.exp()
    log_sum = total.log()
    # as the reference does: kept from 0, where the derivative of a power under 1 is infinite
    rest = (mass / total).clamp(min=torch.finfo(torch.float32).tiny)
    positive = rest**settings.gamma_pos * (t_own - log_sum)
    negative = torch.exp(-gamma_neg * log_sum) * (weighted - log_sum * weight)
    return -(settings.weight_pos * positive + settings.weight_neg * negative)
