"""The GPU kernels. A row that fits in registers is read once; a longer one is read block by block, twice, and its
noise redrawn."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.agcl.launch import SHARE_LAUNCH, row_launch
from ltfast.ops.agcl.settings import AgclSettings, AgclShareSettings
from ltfast.ops.core.launch import chip_of
from ltfast.ops.core.tensors import accumulator, empty_gradient, reduce
from ltfast.ops.noise.triton import half_normal_block
from ltfast.ops.reduction.triton import mean_weight

LOWEST = tl.constexpr(-(2.0**100))  # differences saturate here, and such classes are left out

# How p^gamma_neg is computed: the number of squarings for the published exponents, or one of these.
CONSTANT = tl.constexpr(-1)
GENERAL = tl.constexpr(-2)


@triton.jit
def _noisy_logits(logits, class_noise, seed, row, row_stride, start, classes, y, margin, NOISY: tl.constexpr,
                  ACC: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    column = start + tl.arange(0, BLOCK)
    inside = column < classes
    u = tl.load(logits + row.to(tl.int64) * row_stride + column, mask=inside, other=-float("inf")).to(ACC)
    if NOISY:
        noise = half_normal_block(seed, row, start, BLOCK).to(ACC)
        u -= tl.load(class_noise + column, mask=inside, other=0.0) * noise
    return tl.where(column == y, u - margin, u), column


@triton.jit
def _relative(u, peak, scale):
    t = scale * (u - peak)
    return tl.where(t < LOWEST, LOWEST, t)  # unlike maximum, keeps NaN


@triton.jit
def _power(e, t, gamma, POWER: tl.constexpr):
    if POWER == CONSTANT:
        w = tl.where(t > LOWEST, 1.0, 0.0).to(e.dtype)
    elif POWER == GENERAL:
        w = tl.where(t > LOWEST, tl.exp(gamma * t), 0.0)
    else:
        w = e
        for _ in tl.static_range(POWER):
            w = w * w
    return w


@triton.jit
def _sums(t, e, column, classes, y, gamma, POWER: tl.constexpr):
    """Sums over the other classes of e^t, e^(gamma t) and t e^(gamma t)."""
    others = (column != y) & (column < classes)
    w = tl.where(others, _power(e, t, gamma, POWER), 0.0)
    mass = tl.sum(tl.where(others, e, 0.0))
    return mass, tl.sum(w), tl.sum(tl.where(others, w * t, 0.0))


@triton.jit
def _close_row(mass, weight, weighted, t_own, weight_pos, weight_neg, gamma_pos, gamma_neg, unit, FOCUS: tl.constexpr):
    """The loss of a row and the coefficients of its gradient: dL/dx_c = w (slope t + offset) - e pull, or own."""
    e_own = tl.exp(t_own)
    total = mass + e_own
    log_sum = tl.log(total)
    p = e_own / total
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
    slope = -weight_neg * shrink * gamma_neg * unit
    offset = -weight_neg * shrink * (1.0 - gamma_neg * log_sum) * unit
    pull = (f_own + f_others) / total * unit
    own = (f_own * rest - p * f_others) * unit
    return loss, slope, offset, pull, own


@triton.jit
def _store_gradient(gradient, row, column, classes, y, t, e, gamma, slope, offset, pull, own, ignored,
                    POWER: tl.constexpr):  # fmt: skip
    g = _power(e, t, gamma, POWER) * (slope * t + offset) - e * pull
    g = tl.where(ignored, 0.0, tl.where(column == y, own, g))
    tl.store(gradient + row.to(tl.int64) * classes + column, g.to(gradient.dtype.element_ty), mask=column < classes)


@triton.jit
def _row_kernel(
    logits, target, class_noise, seed, mean_weight, loss, gradient, row_stride, classes,
    unit: "fp64", scale: "fp64", margin: "fp64", weight_pos: "fp64", weight_neg: "fp64",  # noqa: F821
    gamma_pos: "fp64", gamma_neg: "fp64", ignore_index: "i64",  # noqa: F821
    MEAN: tl.constexpr, NOISY: tl.constexpr, FOCUS: tl.constexpr, POWER: tl.constexpr, WITH_GRADIENT: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss and the gradient of one row.

    logits (rows, classes), rows ``row_stride`` apart; target (rows,) int64; class_noise (classes,); seed (1,) int64;
    mean_weight (1,); loss (rows,); gradient (rows, classes), contiguous. class_noise, mean_weight and loss are ACC.
    """
    row = tl.program_id(0)
    y = tl.load(target + row)
    ignored = y == ignore_index
    # A label out of range makes the row NaN: raising would have to wait for the GPU.
    scale = tl.where(((y >= 0) & (y < classes)) | ignored, tl.cast(scale, ACC), float("nan"))
    margin, weight_pos, weight_neg = tl.cast(margin, ACC), tl.cast(weight_pos, ACC), tl.cast(weight_neg, ACC)
    gamma_pos, gamma_neg, unit = tl.cast(gamma_pos, ACC), tl.cast(gamma_neg, ACC), tl.cast(unit, ACC) * scale
    share = tl.full((), 1.0, ACC)
    if MEAN:
        share = tl.load(mean_weight)
        if gradient.dtype.element_ty != tl.float16:
            unit *= share
    key = 0
    if NOISY:
        key = tl.load(seed)

    if ONE_BLOCK:
        u, column = _noisy_logits(logits, class_noise, key, row, row_stride, 0, classes, y, margin, NOISY, ACC, BLOCK)
        t = _relative(u, tl.max(u), scale)
        e = tl.exp(t)
        mass, weight, weighted = _sums(t, e, column, classes, y, gamma_neg, POWER)
        t_own = tl.sum(tl.where(column == y, t, 0.0))
        row_loss, slope, offset, pull, own = _close_row(
            mass, weight, weighted, t_own, weight_pos, weight_neg, gamma_pos, gamma_neg, unit, FOCUS
        )
        tl.store(loss + row, tl.where(ignored, 0.0, row_loss) * share)
        if WITH_GRADIENT:
            _store_gradient(gradient, row, column, classes, y, t, e, gamma_neg, slope, offset, pull, own, ignored,
                            POWER)  # fmt: skip
    else:
        peak = tl.full((), -1.7976931348623157e308 if tl.float64 == ACC else -3.4028234663852886e38, ACC)
        mass = tl.full((), 0.0, ACC)
        weight = tl.full((), 0.0, ACC)
        weighted = tl.full((), 0.0, ACC)
        u_own = tl.full((), 0.0, ACC)
        for start in range(0, classes, BLOCK):
            u, column = _noisy_logits(
                logits, class_noise, key, row, row_stride, start, classes, y, margin, NOISY, ACC, BLOCK
            )
            higher = tl.maximum(peak, tl.max(u))
            shift = _relative(peak, higher, scale)
            peak = higher
            t = _relative(u, peak, scale)
            m, w, wt = _sums(t, tl.exp(t), column, classes, y, gamma_neg, POWER)
            weighted = tl.exp(gamma_neg * shift) * (weighted + shift * weight) + wt
            weight = tl.exp(gamma_neg * shift) * weight + w
            mass = tl.exp(shift) * mass + m
            u_own += tl.sum(tl.where(column == y, u, 0.0))
        row_loss, slope, offset, pull, own = _close_row(
            mass, weight, weighted, _relative(u_own, peak, scale), weight_pos, weight_neg, gamma_pos, gamma_neg, unit,
            FOCUS,
        )  # fmt: skip
        tl.store(loss + row, tl.where(ignored, 0.0, row_loss) * share)
        if WITH_GRADIENT:
            for start in range(0, classes, BLOCK):
                u, column = _noisy_logits(
                    logits, class_noise, key, row, row_stride, start, classes, y, margin, NOISY, ACC, BLOCK
                )
                t = _relative(u, peak, scale)
                _store_gradient(
                    gradient,
                    row,
                    column,
                    classes,
                    y,
                    t,
                    tl.exp(t),
                    gamma_neg,
                    slope,
                    offset,
                    pull,
                    own,
                    ignored,
                    POWER,
                )


@triton.jit
def _share_block(logits, class_noise, seed, row, row_stride, first, start, classes, y, margin, NOISY: tl.constexpr,
                 ACC: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The noisy logits of a share whose first class is column ``first`` of the noise, which is drawn four at a time."""
    skipped = first % 4
    column = start - skipped + tl.arange(0, BLOCK)
    inside = (column >= 0) & (column < classes)
    u = tl.load(logits + row.to(tl.int64) * row_stride + column, mask=inside, other=-float("inf")).to(ACC)
    if NOISY:
        noise = half_normal_block(seed, row, first - skipped + start, BLOCK).to(ACC)
        u -= tl.load(class_noise + column, mask=inside, other=0.0) * noise
    return tl.where(column == y, u - margin, u), column, inside


@triton.jit
def _share_kernel(
    logits, target, class_noise, seed, statistics, row_stride, classes, first,
    scale: "fp64", margin: "fp64", gamma: "fp64",  # noqa: F821
    NOISY: tl.constexpr, POWER: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of one row over a share of the classes; ``ltfast.ops.agcl`` explains them.

    logits (rows, classes), rows ``row_stride`` apart; target (rows,) int64; class_noise (classes,) ACC; seed (1,)
    int64; statistics (rows, 5) float64.
    """
    row = tl.program_id(0)
    y = tl.load(target + row)
    scale, margin, gamma = tl.cast(scale, ACC), tl.cast(margin, ACC), tl.cast(gamma, ACC)
    key = 0
    if NOISY:
        key = tl.load(seed)
    peak = tl.full((), -1.7976931348623157e308 if tl.float64 == ACC else -3.4028234663852886e38, ACC)
    mass = tl.full((), 0.0, ACC)
    weight = tl.full((), 0.0, ACC)
    weighted = tl.full((), 0.0, ACC)
    u_own = tl.full((), 0.0, ACC)
    for start in range(0, classes + first % 4, BLOCK):
        u, column, inside = _share_block(
            logits, class_noise, key, row, row_stride, first, start, classes, y, margin, NOISY, ACC, BLOCK
        )
        higher = tl.maximum(peak, tl.max(u))
        shift = _relative(peak, higher, scale)
        faded = tl.where(shift > LOWEST, tl.exp(gamma * shift), 0.0)
        peak = higher
        t = _relative(u, peak, scale)
        e = tl.exp(t)
        others = inside & (column != y)
        w = tl.where(others, _power(e, t, gamma, POWER), 0.0)
        weighted = faded * (weighted + shift * weight) + tl.sum(tl.where(others, w * t, 0.0))
        weight = faded * weight + tl.sum(w)
        mass = tl.exp(shift) * mass + tl.sum(tl.where(others, e, 0.0))
        u_own += tl.sum(tl.where(inside & (column == y), u, 0.0))
    statistics += 5 * row.to(tl.int64)
    tl.store(statistics, peak.to(tl.float64))
    tl.store(statistics + 1, u_own.to(tl.float64))
    tl.store(statistics + 2, mass.to(tl.float64))
    tl.store(statistics + 3, weight.to(tl.float64))
    tl.store(statistics + 4, weighted.to(tl.float64))


@triton.jit
def _share_gradient_kernel(
    logits, target, class_noise, seed, statistics, incoming, gradient, row_stride, classes, first,
    scale: "fp64", margin: "fp64", gamma: "fp64",  # noqa: F821
    NOISY: tl.constexpr, POWER: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of columns of one row, from that of its sums.

    logits (rows, classes), rows ``row_stride`` apart; target (rows,) int64; class_noise (classes,) ACC; seed (1,)
    int64; statistics and incoming (rows, 5) float64; gradient (rows, classes), contiguous.
    """
    row = tl.program_id(0)
    start = tl.program_id(1) * BLOCK
    y = tl.load(target + row)
    incoming += 5 * row.to(tl.int64)
    of_own = tl.load(incoming + 1)
    of_mass = tl.load(incoming + 2)
    of_weight = tl.load(incoming + 3)
    of_weighted = tl.load(incoming + 4)
    scale, gamma = tl.cast(scale, tl.float64), tl.cast(gamma, tl.float64)
    slope = (scale * gamma * of_weighted).to(ACC)
    offset = (scale * (gamma * of_weight + of_weighted)).to(ACC)
    pull = (scale * of_mass).to(ACC)
    scale, margin, gamma = scale.to(ACC), tl.cast(margin, ACC), gamma.to(ACC)
    key = 0
    if NOISY:
        key = tl.load(seed)
    u, column, inside = _share_block(
        logits, class_noise, key, row, row_stride, first, start, classes, y, margin, NOISY, ACC, BLOCK
    )
    t = _relative(u, tl.load(statistics + 5 * row.to(tl.int64)).to(ACC), scale)
    e = tl.exp(t)
    g = _power(e, t, gamma, POWER) * (slope * t + offset) + e * pull
    g = tl.where(column == y, of_own.to(ACC), g)
    tl.store(gradient + row.to(tl.int64) * classes + column, g.to(gradient.dtype.element_ty), mask=inside)


def power_kind(gamma: float) -> int:
    squarings = {0.0: CONSTANT.value, 1.0: 0, 2.0: 1, 4.0: 2, 8.0: 3}
    return squarings.get(gamma, GENERAL.value)


def agcl(
    logits: Tensor,
    target: Tensor,
    class_noise: Tensor | None,
    seed: Tensor | None,
    settings: AgclSettings,
    with_gradient: bool,
    unit: float,
) -> tuple[Tensor, Tensor]:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, classes = logits.shape
    acc = accumulator(logits.dtype)
    loss = torch.empty(rows, dtype=acc, device=logits.device)
    gradient = empty_gradient(logits, with_gradient)
    weight = mean_weight(target, settings.ignore_index, acc) if settings.reduction == "mean" else None
    _row_kernel[(rows,)](
        logits, target, class_noise, seed, weight, loss, gradient, logits.stride(0), classes,
        unit, *settings[:-1],
        MEAN=weight is not None,
        NOISY=class_noise is not None,
        FOCUS=settings.gamma_pos != 0,
        POWER=power_kind(settings.gamma_neg),
        WITH_GRADIENT=with_gradient,
        ACC=tl.float64 if acc == torch.float64 else tl.float32,
        **row_launch(classes, acc, chip_of(logits.device)).options,
    )  # fmt: skip
    return reduce(loss, "none" if settings.reduction == "none" else "sum"), gradient


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
    options = {
        "NOISY": class_noise is not None,
        "POWER": power_kind(settings.gamma_neg),
        "ACC": tl.float64 if logits.dtype == torch.float64 else tl.float32,
        **SHARE_LAUNCH.options,
    }
    if incoming is None:
        _share_kernel[(rows,)](
            logits, target, class_noise, seed, statistics, logits.stride(0), classes, *settings,
            **options,
        )  # fmt: skip
        return None
    gradient = empty_gradient(logits, True)
    _share_gradient_kernel[(rows, triton.cdiv(classes + settings.first % 4, SHARE_LAUNCH.block))](
        logits, target, class_noise, seed, statistics, incoming, gradient, logits.stride(0), classes,
        *settings, **options,
    )  # fmt: skip
    return gradient
