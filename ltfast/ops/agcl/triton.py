"""The GPU kernels. A row that fits in registers is read once; a longer one is read block by block, twice, and its
noise redrawn."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.agcl.launch import row_launch, share_launch
from ltfast.ops.agcl.settings import AgclSettings, AgclShareSettings
from ltfast.ops.core.launch import chip_of, vector_width
from ltfast.ops.core.tensors import accumulator, empty_gradient
from ltfast.ops.noise.triton import half_normal_at, half_normal_block
from ltfast.ops.reduction.triton import add_losses, mean_share, reduction_of

# Exponents are in powers of two: e^(scale (u - peak)) = 2^t with t = scale log2(e) (u - peak).
LOG2 = tl.constexpr(math.log(2))
LOWEST = tl.constexpr(-(2.0**100) / math.log(2))  # t saturates here, and such classes are left out

# How p^gamma_neg is computed: the number of squarings for the published exponents, or one of these.
CONSTANT = tl.constexpr(-1)
GENERAL = tl.constexpr(-2)


@triton.jit
def _noisy_logits(logits, class_noise, seed, row, start, column, inside, NOISY: tl.constexpr, PTX: tl.constexpr,
                  ACC: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """A row's logits less their noise, which begins at column ``start`` of the noise; -inf where not ``inside``."""
    u = tl.load(logits + column, mask=inside, other=-float("inf")).to(ACC)
    if NOISY:
        noise = half_normal_block(seed, row, start, PTX, BLOCK).to(ACC)
        u -= tl.load(class_noise + column, mask=inside, other=0.0) * noise
    return u


@triton.jit
def _noisy_logit(logits, class_noise, seed, row, place, column, inside, NOISY: tl.constexpr, PTX: tl.constexpr,
                 ACC: tl.constexpr):  # fmt: skip
    """The same for one column, whose noise is at column ``place`` of the noise; 0 if not ``inside``."""
    u = tl.load(logits + column, mask=inside, other=0.0).to(ACC)
    if NOISY:
        u -= tl.load(class_noise + column, mask=inside, other=0.0) * half_normal_at(seed, row, place, PTX).to(ACC)
    return u


@triton.jit
def _relative(u, peak, scale):
    return tl.maximum(scale * (u - peak), LOWEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _power(p, t, gamma, POWER: tl.constexpr):
    if POWER == CONSTANT:
        w = tl.where(t > LOWEST, 1.0, 0.0).to(p.dtype)
    elif POWER == GENERAL:
        w = tl.where(t > LOWEST, tl.exp2(gamma * t), 0.0)
    else:
        w = p
        for _ in tl.static_range(POWER):
            w = w * w
    return w


@triton.jit
def _sums(p, w, t):
    """The sums of p, w and w t, in one reduction."""
    parts = tl.sum(tl.join(tl.join(p, w * t), tl.join(w, tl.zeros_like(w))), axis=0)
    first, second = tl.split(parts)
    mass, weighted = tl.split(first)
    weight, _ = tl.split(second)
    return mass, weight, weighted


@triton.jit
def _close_row(mass, weight, weighted, t_own, weight_pos, weight_neg, gamma_pos, gamma_neg, unit, FOCUS: tl.constexpr):
    """The loss of a row and the coefficients of its gradient: dL/dx_c = w (slope t + offset) - p pull, or own."""
    t_own *= LOG2
    weighted *= LOG2
    p_own = tl.exp(t_own)
    total = mass + p_own
    log_sum = tl.log(total)
    p = p_own / total
    rest = mass / total
    log_p = t_own - log_sum
    shrink = tl.exp(-gamma_neg * log_sum)
    negatives = shrink * (weighted - log_sum * weight)
    focus = rest * 0.0 + 1.0
    steep = rest * 0.0
    if FOCUS:
        log_rest = tl.log(rest)
        focus = tl.exp(gamma_pos * log_rest)
        slope_of_focus = gamma_pos * tl.exp((gamma_pos - 1.0) * log_rest) * p * log_p
        steep = tl.where(rest == 0.0, 0.0, slope_of_focus)
    loss = -(weight_pos * focus * log_p + weight_neg * negatives)
    f_own = -weight_pos * (focus - steep)
    f_others = -weight_neg * (gamma_neg * negatives + shrink * weight)
    slope = -weight_neg * shrink * gamma_neg * unit * LOG2
    offset = -weight_neg * shrink * (1.0 - gamma_neg * log_sum) * unit
    pull = (f_own + f_others) / total * unit
    own = (f_own * rest - p * f_others) * unit
    return loss, slope, offset, pull, own


@triton.jit
def _weigh(w, class_weight, column, inside, WEIGHTED: tl.constexpr):
    """The powers of a row's probabilities times the weights of their classes."""
    if WEIGHTED:
        w *= tl.load(class_weight + column, mask=inside, other=0.0)
    return w


@triton.jit
def _store_gradient(gradient, class_weight, column, classes, y, p, t, gamma, slope, offset, pull, own,
                    POWER: tl.constexpr, WEIGHTED: tl.constexpr):  # fmt: skip
    # by another way than before the sums: else the compiler keeps each power in a register until here, and spills
    w = tl.exp2(gamma * t) if POWER > 0 else _power(p, t, gamma, POWER)
    w = _weigh(w, class_weight, column, column < classes, WEIGHTED)
    g = w * (slope * t + offset) - p * pull
    g = tl.where(column == y, own, g)
    tl.store(gradient + column, g.to(gradient.dtype.element_ty), mask=column < classes)


# A seed that 16 divides would otherwise compile the kernel again.
@triton.jit(do_not_specialize=["seed", "rows", "first_row"])
def _row_kernel(
    logits, target, class_noise, class_weight, seed: "i64", device_seed, losses, total, arrived, mean_weight, gradient,  # noqa: F821
    row_stride, rows, classes,
    unit: "fp64", scale: "fp64", margin: "fp64", weight_pos: "fp64", weight_neg: "fp64",  # noqa: F821
    gamma_pos: "fp64", gamma_neg: "fp64", ignore_index: "i64", first_row, SHARE: tl.constexpr, ADD: tl.constexpr,  # noqa: F821
    NOISY: tl.constexpr, WEIGHTED: tl.constexpr, FOCUS: tl.constexpr, POWER: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, ACC: tl.constexpr, WIDTH: tl.constexpr, PTX: tl.constexpr, BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss and the gradient of one row.

    logits (rows, classes), rows ``row_stride`` apart; target (rows,) int64; class_noise and class_weight (classes,)
    ACC; device_seed (1,) int64, or None: then ``seed`` is used; gradient (rows, classes), contiguous. losses (rows,)
    ACC, total, arrived and mean_weight: see ``ltfast.ops.reduction``. The noise begins at its row ``first_row``.
    ``row_stride`` and ``classes`` come divided by WIDTH, so that the compiler knows how many columns one instruction
    may load.
    """
    row = tl.program_id(0)
    label = tl.load(target + row)
    ignored = label == ignore_index
    valid = (label >= 0) & (label < classes * WIDTH)
    y = tl.where(valid & (label != ignore_index), label, -1).to(tl.int32)
    # A label out of range makes the row NaN: raising would have to wait for the GPU.
    unit = tl.cast(unit, ACC) * tl.cast(scale, ACC)
    scale = tl.where(valid | ignored, tl.cast(scale / LOG2, ACC), float("nan"))
    margin, weight_pos, weight_neg = tl.cast(margin, ACC), tl.cast(weight_pos, ACC), tl.cast(weight_neg, ACC)
    gamma_pos, gamma_neg = tl.cast(gamma_pos, ACC), tl.cast(gamma_neg, ACC)
    weight_pos = _weigh(weight_pos, class_weight, y, y >= 0, WEIGHTED)
    share = mean_share(target, mean_weight, rows, ignore_index, SHARE, ACC)
    if gradient.dtype.element_ty != tl.float16:
        unit *= share
    unit = tl.where(ignored, 0.0, unit)  # the share is infinite where all rows are ignored
    if device_seed is not None:
        seed = tl.load(device_seed)
    logits += row.to(tl.int64) * row_stride * WIDTH
    gradient += row.to(tl.int64) * classes * WIDTH
    read = tl.where(ignored, 0, classes) * WIDTH  # an ignored row is as one without classes: all sums are 0
    classes *= WIDTH

    noise_row = row + first_row
    u_own = _noisy_logit(logits, class_noise, seed, noise_row, y, y, y >= 0, NOISY, PTX, ACC) - margin
    if ONE_BLOCK:
        column = tl.arange(0, BLOCK)
        u = _noisy_logits(logits, class_noise, seed, noise_row, 0, column, column < read, NOISY, PTX, ACC, BLOCK)
        u = tl.where(column == y, -float("inf"), u)
        peak = tl.maximum(tl.max(u), u_own)
        t = _relative(u, peak, scale)
        p = tl.exp2(t)
        w = _weigh(_power(p, t, gamma_neg, POWER), class_weight, column, column < read, WEIGHTED)
        mass, weight, weighted = _sums(p, w, t)
    else:
        peak = tl.maximum(u_own, -1.7976931348623157e308 if tl.float64 == ACC else -3.4028234663852886e38)
        mass = tl.full((), 0.0, ACC)
        weight = tl.full((), 0.0, ACC)
        weighted = tl.full((), 0.0, ACC)
        for start in range(0, classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            u = _noisy_logits(
                logits, class_noise, seed, noise_row, start, column, column < read, NOISY, PTX, ACC, BLOCK
            )
            u = tl.where(column == y, -float("inf"), u)
            higher = tl.maximum(peak, tl.max(u))
            shift = _relative(peak, higher, scale)
            peak = higher
            t = _relative(u, peak, scale)
            p = tl.exp2(t)
            w = _weigh(_power(p, t, gamma_neg, POWER), class_weight, column, column < read, WEIGHTED)
            more = _sums(p, w, t)
            faded = tl.where(shift > LOWEST, tl.exp2(gamma_neg * shift), 0.0)
            weighted = faded * (weighted + shift * weight) + more[2]
            weight = faded * weight + more[1]
            mass = tl.exp2(shift) * mass + more[0]
    row_loss, slope, offset, pull, own = _close_row(
        mass, weight, weighted, _relative(u_own, peak, scale), weight_pos, weight_neg, gamma_pos, gamma_neg, unit, FOCUS
    )
    if WITH_GRADIENT:
        if ONE_BLOCK:
            _store_gradient(gradient, class_weight, column, classes, y, p, t, gamma_neg, slope, offset, pull, own,
                            POWER, WEIGHTED)  # fmt: skip
        else:
            for start in range(0, classes, BLOCK):
                column = start + tl.arange(0, BLOCK)
                u = _noisy_logits(
                    logits, class_noise, seed, noise_row, start, column, column < read, NOISY, PTX, ACC, BLOCK
                )
                t = _relative(tl.where(column == y, -float("inf"), u), peak, scale)
                _store_gradient(gradient, class_weight, column, classes, y, tl.exp2(t), t, gamma_neg, slope, offset,
                                pull, own, POWER, WEIGHTED)  # fmt: skip
    tl.store(losses + row, tl.where(ignored, 0.0, row_loss) * share)
    add_losses(losses, total, arrived, rows, ADD)


@triton.jit
def _place_in_share(label, classes):
    """The label as a column, or -1 if it is in another share: as int32, since int64 comparisons cost more."""
    return tl.where((label >= 0) & (label < classes), label, -1).to(tl.int32)


@triton.jit
def _share_kernel(
    logits, target, class_noise, device_seed, statistics, row_stride, classes, first,
    scale: "fp64", margin: "fp64", gamma: "fp64",  # noqa: F821
    NOISY: tl.constexpr, POWER: tl.constexpr, ACC: tl.constexpr, PTX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of one row over a share of the classes; ``ltfast.ops.agcl`` explains them.

    logits (rows, classes), rows ``row_stride`` apart; target (rows,) int64; class_noise (classes,) ACC; device_seed
    (1,) int64; statistics (rows, 5) float64.
    """
    row = tl.program_id(0)
    y = _place_in_share(tl.load(target + row), classes)
    logits += row.to(tl.int64) * row_stride
    scale, margin, gamma = tl.cast(scale / LOG2, ACC), tl.cast(margin, ACC), tl.cast(gamma, ACC)
    seed = 0
    if NOISY:
        seed = tl.load(device_seed)
    has_own = y >= 0
    u_own = _noisy_logit(logits, class_noise, seed, row, first + y, y, has_own, NOISY, PTX, ACC)
    u_own = tl.where(has_own, u_own - margin, 0.0)
    lowest = -1.7976931348623157e308 if tl.float64 == ACC else -3.4028234663852886e38
    peak = tl.where(has_own, tl.maximum(u_own, lowest), lowest)
    mass = tl.full((), 0.0, ACC)
    weight = tl.full((), 0.0, ACC)
    weighted = tl.full((), 0.0, ACC)
    skipped = first % 8  # the noise is drawn eight columns at a time
    for start in range(0, classes + skipped, BLOCK):
        column = start - skipped + tl.arange(0, BLOCK)
        inside = (column >= 0) & (column < classes)
        u = _noisy_logits(logits, class_noise, seed, row, first - skipped + start, column, inside, NOISY, PTX, ACC,
                          BLOCK)  # fmt: skip
        u = tl.where(column == y, -float("inf"), u)
        higher = tl.maximum(peak, tl.max(u))
        shift = _relative(peak, higher, scale)
        peak = higher
        t = _relative(u, peak, scale)
        p = tl.exp2(t)
        more = _sums(p, _power(p, t, gamma, POWER), t)
        faded = tl.where(shift > LOWEST, tl.exp2(gamma * shift), 0.0)
        weighted = faded * (weighted + shift * weight) + more[2]
        weight = faded * weight + more[1]
        mass = tl.exp2(shift) * mass + more[0]
    statistics += 5 * row.to(tl.int64)
    tl.store(statistics, peak.to(tl.float64))
    tl.store(statistics + 1, u_own.to(tl.float64))
    tl.store(statistics + 2, mass.to(tl.float64))
    tl.store(statistics + 3, weight.to(tl.float64))
    tl.store(statistics + 4, weighted.to(tl.float64) * LOG2)


@triton.jit
def _share_gradient_kernel(
    logits, target, class_noise, device_seed, statistics, incoming, gradient, row_stride, classes, first,
    scale: "fp64", margin: "fp64", gamma: "fp64",  # noqa: F821
    NOISY: tl.constexpr, POWER: tl.constexpr, ACC: tl.constexpr, PTX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of columns of one row, from that of its sums.

    logits (rows, classes), rows ``row_stride`` apart; target (rows,) int64; class_noise (classes,) ACC; device_seed
    (1,) int64; statistics and incoming (rows, 5) float64; gradient (rows, classes), contiguous.
    """
    row = tl.program_id(0)
    skipped = first % 8
    start = tl.program_id(1) * BLOCK
    column = start - skipped + tl.arange(0, BLOCK)
    inside = (column >= 0) & (column < classes)
    y = _place_in_share(tl.load(target + row), classes)
    logits += row.to(tl.int64) * row_stride
    incoming += 5 * row.to(tl.int64)
    of_own = tl.load(incoming + 1)
    of_mass = tl.load(incoming + 2)
    of_weight = tl.load(incoming + 3)
    of_weighted = tl.load(incoming + 4)
    scale, gamma = tl.cast(scale, tl.float64), tl.cast(gamma, tl.float64)
    slope = (scale * gamma * of_weighted * LOG2).to(ACC)
    offset = (scale * (gamma * of_weight + of_weighted)).to(ACC)
    pull = (scale * of_mass).to(ACC)
    scale, margin, gamma = (scale / LOG2).to(ACC), tl.cast(margin, ACC), gamma.to(ACC)
    seed = 0
    if NOISY:
        seed = tl.load(device_seed)
    u = _noisy_logits(logits, class_noise, seed, row, first - skipped + start, column, inside, NOISY, PTX, ACC, BLOCK)
    t = _relative(u, tl.load(statistics + 5 * row.to(tl.int64)).to(ACC), scale)
    p = tl.exp2(t)
    g = _power(p, t, gamma, POWER) * (slope * t + offset) + p * pull
    g = tl.where(column == y, of_own.to(ACC), g)
    tl.store(gradient + row.to(tl.int64) * classes + column, g.to(gradient.dtype.element_ty), mask=inside)


def power_kind(gamma: float) -> int:
    squarings = {0.0: CONSTANT.value, 1.0: 0, 2.0: 1, 4.0: 2, 8.0: 3}
    return squarings.get(gamma, GENERAL.value)


def agcl(
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    class_weight: Tensor | None,
    seed: Tensor | None,
    settings: AgclSettings,
    with_gradient: bool,
    unit: float,
) -> tuple[Tensor, Tensor]:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, classes = logits.shape
    acc = accumulator(logits.dtype)
    losses = torch.empty(rows, dtype=acc, device=logits.device)
    gradient = empty_gradient(logits, with_gradient)
    reduction = reduction_of(losses, target, settings.reduction, settings.ignore_index)
    host_seed, device_seed = (int(seed), None) if seed is not None and seed.device.type == "cpu" else (0, seed)
    width = vector_width(logits.dtype, classes, logits.stride(0))
    _row_kernel[(rows,)](
        logits, target, class_noise, class_weight, host_seed, device_seed, *reduction.arguments,
        gradient, logits.stride(0) // width, rows, classes // width, unit, *settings[:-2],
        settings.first_row,
        **reduction.constants,
        NOISY=class_noise is not None,
        WEIGHTED=class_weight is not None,
        FOCUS=settings.gamma_pos != 0,
        POWER=power_kind(settings.gamma_neg),
        WITH_GRADIENT=with_gradient,
        ACC=tl.float64 if acc == torch.float64 else tl.float32,
        WIDTH=width,
        **row_launch(classes, acc, chip_of(logits.device)).options,
    )  # fmt: skip
    return reduction.result(), gradient


def agcl_share(
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    settings: AgclShareSettings,
    statistics: Tensor,
    incoming: Tensor | None,
) -> Tensor | None:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, classes = logits.shape
    launch = share_launch(chip_of(logits.device))
    options = {
        "NOISY": class_noise is not None,
        "POWER": power_kind(settings.gamma_neg),
        "ACC": tl.float64 if logits.dtype == torch.float64 else tl.float32,
        **launch.options,
    }
    if incoming is None:
        _share_kernel[(rows,)](
            logits, target, class_noise, seed, statistics, logits.stride(0), classes, *settings,
            **options,
        )  # fmt: skip
        return None
    gradient = empty_gradient(logits, True)
    _share_gradient_kernel[(rows, triton.cdiv(classes + settings.first % 8, launch.block))](
        logits, target, class_noise, seed, statistics, incoming, gradient, logits.stride(0), classes,
        *settings, **options,
    )  # fmt: skip
    return gradient
