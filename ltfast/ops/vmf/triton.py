"""The GPU path: an epilogue kernel between PyTorch's matrix products. A row of a block stays in registers."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.bessel.debye import ORDER, ORDER_SINGLE, TERMS, TERMS_SINGLE
from ltfast.ops.bessel.triton import debye_series, log1p
from ltfast.ops.core.launch import chip_of
from ltfast.ops.reduction.triton import mean_weight
from ltfast.ops.vmf import blocks
from ltfast.ops.vmf.launch import epilogue_launch, ratio_launch

LONGEST, LONGEST_DOUBLE = tl.constexpr(1e12), tl.constexpr(1e100)  # k and, squared, its increments saturate here


@triton.jit
def _longest(ACC: tl.constexpr):
    return tl.full((), LONGEST_DOUBLE if tl.float64 == ACC else LONGEST, ACC)


@triton.jit
def _saturated(kappa):
    """The difference is 0, or NaN where kappa is not finite."""
    longest = _longest(kappa.dtype)
    return tl.where(kappa > longest, longest, kappa) + (kappa - kappa)


@triton.jit
def _square_root(x):
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def _number(x, ACC: tl.constexpr):
    """An argument in the dtype of the arithmetic. (In the interpreter a cast would round to float32 first.)"""
    return (tl.full((), 1.0, tl.float64) * x).to(ACC)


@triton.jit
def _tail(square, p, q, v, STEPS: tl.constexpr, TERMS: tl.constexpr):
    """Of F at k^2 = square what its leading terms leave, as a sum and the factor of a logarithm, and 2 dF / d(k^2);
    p = 1 / s and q = 1 / (v + s)."""
    t = (v * p) * (v * p)
    value = debye_series(p, t, 0, TERMS)
    slope = q - p * p * (0.5 + debye_series(p, t, 1, TERMS))
    factor = tl.zeros_like(p) + 1.0
    for step in tl.static_range(STEPS):  # I_{j-1} = I_j (2j + k^2 B_j) / k, each factor over s to stay in range
        denominator = 2.0 * (v - step) + square * slope
        factor *= denominator * p
        slope = 1.0 / denominator
    return value, factor, slope


@triton.jit
def _ratio(increment, kappa, v, STEPS: tl.constexpr, TERMS: tl.constexpr):
    """F(k') - F(k) and 2 dF / d(k^2) at k'^2 = k^2 + increment, by STEPS of the recurrence down from order v."""
    square = kappa * kappa
    largest = _longest(kappa.dtype) * _longest(kappa.dtype)
    inside = tl.where(increment < -square, -square, increment)  # unlike maximum, keeps NaN
    inside = tl.where(inside > largest, largest, inside)
    raised = square + inside
    raised = tl.where(raised < 0, 0.0, raised)
    s = _square_root(v * v + square)
    s_raised = _square_root(v * v + raised)
    v_s = v + s
    v_raised = v + s_raised
    both = s + s_raised
    inverse = 1.0 / (s * v_s)
    inverse_raised = 1.0 / (s_raised * v_raised * both)  # one division for the three
    d = inside * (s_raised * v_raised * inverse_raised)
    p = v_s * inverse
    q = s * inverse
    least = tl.full((), -0.9999999999999999 if d.dtype == tl.float64 else -0.99999994, d.dtype)  # -1 by rounding only
    fall_q, fall_p = d * q, d * p
    fall_q, fall_p = tl.where(fall_q < least, least, fall_q), tl.where(fall_p < least, least, fall_p)
    ratio = d - v * log1p(fall_q) + (STEPS - 0.5) * log1p(fall_p)
    value, factor, _ = _tail(square, p, q, v, STEPS, TERMS)
    value_raised, factor_raised, slope = _tail(
        raised, v_raised * both * inverse_raised, s_raised * both * inverse_raised, v, STEPS, TERMS
    )
    ratio += value_raised - value
    if STEPS > 0:
        ratio += tl.log(factor_raised / factor)
    return ratio, slope


@triton.jit
def _ratio_kernel(increments, kappa, ratio, slope, classes, v: "fp64",  # noqa: F821
                  WITH_SLOPE: tl.constexpr, STEPS: tl.constexpr, TERMS: tl.constexpr, ACC: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    """A block of columns of one row: increments, ratio and slope (rows, classes), contiguous; kappa (classes,)."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < classes
    here = tl.program_id(0).to(tl.int64) * classes + column
    k = _saturated(tl.load(kappa + column, mask=inside, other=0.0))
    value, b = _ratio(tl.load(increments + here, mask=inside, other=0.0), k, _number(v, ACC), STEPS, TERMS)
    tl.store(ratio + here, value, mask=inside)
    if WITH_SLOPE:
        tl.store(slope + here, 0.5 * b, mask=inside)


@triton.jit
def _cross_entropy_kernel(
    products, features, target, directions, kappa, log_prior, mean_weight, state, loss, gradient,
    stride, start, count, classes, width,
    v: "fp64", inverse_temperature: "fp64", unit: "fp64",  # noqa: F821
    ignore_index: "i64", MEAN: tl.constexpr, MEAN_GRADIENT: tl.constexpr,  # noqa: F821
    LABELLED: tl.constexpr, PRIOR: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, WITH_GRADIENT: tl.constexpr,
    STEPS: tl.constexpr, TERMS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One row of one block of classes, [start, start + count). All tensors but the target are ACC, and contiguous.

    products (rows, count), rows ``stride`` apart: becomes the weights of the directions in the gradient; features
    (rows, width); target (rows,) int64; directions (classes, width); kappa and log_prior (classes,); mean_weight (1,);
    state (rows, 5): the peak, the sum and the pull of the running softmax, the label's logit and slope; loss (rows,);
    gradient (rows, width).
    """
    row = tl.program_id(0).to(tl.int64)
    inverse_temperature, unit = _number(inverse_temperature, ACC), _number(unit, ACC)
    state += 5 * row
    before = tl.full((), -1.7976931348623157e308 if tl.float64 == ACC else -3.4028234663852886e38, ACC)
    total = tl.full((), 0.0, ACC)
    pull = tl.full((), 0.0, ACC)
    own_logit = tl.full((), 0.0, ACC)
    own_slope = tl.full((), 0.0, ACC)
    if not FIRST:  # before any reduction: no warp may have stored its new state
        before = tl.load(state).to(ACC)
        total = tl.load(state + 1).to(ACC)
        pull = tl.load(state + 2).to(ACC)
        own_logit = tl.load(state + 3).to(ACC)
        own_slope = tl.load(state + 4).to(ACC)

    squares = tl.zeros((WIDTH,), ACC)
    broken = tl.zeros((WIDTH,), ACC)  # NaN if a feature is not finite
    for j in range(0, width, WIDTH):
        column = j + tl.arange(0, WIDTH)
        z = tl.load(features + row * width + column, mask=column < width, other=0.0)
        squares += z * z
        broken += z - z
    shift = tl.sum(squares) * inverse_temperature * inverse_temperature
    largest = _longest(ACC) * _longest(ACC)
    shortened = tl.where(shift > largest, _longest(ACC) / tl.sqrt(shift), 1.0)  # what is left of longer features
    shift = tl.where(shift > largest, largest, shift) + tl.sum(broken)

    c = tl.arange(0, BLOCK)
    inside = c < count
    here = products + row * stride + c
    k = _saturated(tl.load(kappa + start + c, mask=inside, other=0.0))
    increment = tl.load(here, mask=inside, other=0.0) * shortened * (2.0 * inverse_temperature * k) + shift
    logits, slopes = _ratio(increment, k, _number(v, ACC), STEPS, TERMS)
    if PRIOR:
        logits += tl.load(log_prior + start + c, mask=inside, other=0.0)
    logits = tl.where(inside, logits, -float("inf"))
    y = tl.full((), -1, tl.int64)
    if LABELLED:
        y = tl.load(target + row)
    own = inside & (c == y - start)
    own_logit += tl.sum(tl.where(own, logits, 0.0))
    own_slope += tl.sum(tl.where(own, slopes, 0.0))

    peak = tl.maximum(before, tl.max(logits))
    faded = tl.exp(before - peak)
    e = tl.exp(logits - peak)
    pulls = e * slopes
    total = total * faded + tl.sum(e)
    pull = pull * faded + tl.sum(pulls)

    ignored = row < 0
    if LABELLED:
        ignored = y == ignore_index
    if LAST:
        share = tl.full((), 1.0, ACC)
        if MEAN:
            share = tl.load(mean_weight)
            if MEAN_GRADIENT:
                unit *= share
        valid = (y >= 0) & (y < classes)
        # A label out of range makes the row NaN: raising would have to wait for the GPU.
        missing = tl.where(valid | ignored | (not LABELLED), 0.0, float("nan")).to(ACC)
        row_loss = tl.log(total) + (peak - own_logit) + missing
        tl.store(loss + row, tl.where(ignored, 0.0, row_loss) * share)
        # the softmax's part less the label's; the product of `products` with the directions is still to be added
        scale = unit / total
        radial = (unit * (pull / total - own_slope) + missing) * inverse_temperature * inverse_temperature * shortened
        pull_own = unit * own_slope * inverse_temperature * _saturated(tl.load(kappa + y, mask=valid, other=0.0))
    else:
        scale = 1.0
        tl.store(state, peak)
        tl.store(state + 1, total)
        tl.store(state + 2, pull)
        tl.store(state + 3, own_logit)
        tl.store(state + 4, own_slope)
    if WITH_GRADIENT:
        weights = pulls * (inverse_temperature * k) * scale
        tl.store(here, tl.where(ignored, 0.0, weights), mask=inside)
        for j in range(0, width, WIDTH):
            column = j + tl.arange(0, WIDTH)
            within = column < width
            g = tl.zeros((WIDTH,), ACC)
            if not FIRST:
                g = tl.load(gradient + row * width + column, mask=within, other=0.0) * (faded * scale)
            if LAST:
                z = tl.load(features + row * width + column, mask=within, other=0.0)
                # of a label out of range any other's: the row is NaN (Triton 3.9's interpreter takes no `& valid` here)
                own_row = directions + tl.where(valid, y, 0) * width
                direction = tl.load(own_row + column, mask=within, other=0.0)
                g += radial * z - pull_own * direction
                g = tl.where(ignored, 0.0, g)
            tl.store(gradient + row * width + column, g, mask=within)


def expansion_options(nu: float, dtype: torch.dtype) -> tuple[float, dict[str, Any]]:
    """The order of the expansion, and the recurrence's steps down from it."""
    double = dtype == torch.float64
    order = ORDER if double else ORDER_SINGLE
    steps = order if nu < order else 0
    options = {
        "STEPS": steps,
        "TERMS": TERMS if double else TERMS_SINGLE,
        "ACC": tl.float64 if double else tl.float32,
    }
    return nu + steps, options


def vmf_ratio(increments: Tensor, kappa: Tensor, nu: float, with_slope: bool) -> tuple[Tensor, Tensor]:
    rows, classes = increments.shape
    ratio = torch.empty_like(increments)
    slope = torch.empty_like(increments) if with_slope else increments.new_empty(0)
    v, options = expansion_options(nu, increments.dtype)
    launch = ratio_launch(increments.dtype)
    _ratio_kernel[(rows, triton.cdiv(classes, launch.block))](
        increments, kappa, ratio, slope, classes, v, WITH_SLOPE=with_slope, **options, **launch.options
    )  # fmt: skip
    return ratio, slope


def vmf_cross_entropy(*arguments: Any) -> tuple[Tensor, Tensor]:
    return blocks.cross_entropy(_epilogue, *arguments)


def _epilogue(products: Tensor, start: int, count: int, rows: blocks.Rows) -> int:
    features, target, loss = rows.features, rows.target, rows.loss
    ignore_index, temperature = rows.settings.ignore_index, rows.settings.temperature
    batch, width = features.shape
    classes = len(rows.directions)
    last = start + count == classes
    v, options = expansion_options(width / 2 - 1, features.dtype)
    weight = None
    if rows.mean and last:
        weight = loss.new_full((), 1 / batch) if target is None else mean_weight(target, ignore_index, loss.dtype)
    _cross_entropy_kernel[(batch,)](
        products, features, target, rows.directions, rows.kappa, rows.log_prior, weight, rows.state, loss,
        rows.gradient, products.stride(0), start, count, classes, width, v, 1 / temperature, rows.unit, ignore_index,
        MEAN=weight is not None,
        MEAN_GRADIENT=rows.mean_gradient,
        LABELLED=target is not None,
        PRIOR=rows.log_prior is not None,
        FIRST=start == 0,
        LAST=last,
        WITH_GRADIENT=rows.gradient is not None,
        **options,
        **epilogue_launch(count, width, features.dtype, chip_of(features.device)).options,
    )  # fmt: skip
    return 1  # the losses have their weight in the mean already
