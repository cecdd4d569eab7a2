"""The GPU path: an epilogue kernel between PyTorch's matrix products. A row of a block stays in registers."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.bessel.debye import ORDER, ORDER_SINGLE, terms_from
from ltfast.ops.bessel.triton import debye_series, log1p
from ltfast.ops.core.launch import chip_of
from ltfast.ops.reduction.triton import add_losses, mean_share, reduction_of
from ltfast.ops.vmf import blocks
from ltfast.ops.vmf.fast_math import atanh_tail, exp, log, log_of_quotient, reciprocal, root
from ltfast.ops.vmf.launch import epilogue_launch, epilogue_programs, ratio_launch

LONGEST, LONGEST_DOUBLE = tl.constexpr(1e12), tl.constexpr(1e100)  # k and, squared, its increments saturate here
SMALL, SMALL_DOUBLE = tl.constexpr(2.0**-80), tl.constexpr(2.0**-600)  # the square of a product with it is in range


@triton.jit
def _longest(ACC: tl.constexpr):
    return tl.full((), LONGEST_DOUBLE if tl.float64 == ACC else LONGEST, ACC)


@triton.jit
def _saturated(kappa):
    """The difference is 0, or NaN where kappa is not finite."""
    longest = _longest(kappa.dtype)
    return tl.where(kappa > longest, longest, kappa) + (kappa - kappa)


@triton.jit
def _number(x, ACC: tl.constexpr):
    """An argument in the dtype of the arithmetic. (In the interpreter a cast would round to float32 first.)"""
    return (tl.full((), 1.0, tl.float64) * x).to(ACC)


@triton.jit
def _tail(square, p, q, v, STEPS: tl.constexpr, TERMS: tl.constexpr):
    """Of F at k^2 = square what its leading terms leave, as a sum and the factor of a logarithm, and 2 dF / d(k^2);
    p = 1 / s and q = 1 / (v + s)."""
    square_p = p * p
    t = (v * v) * square_p
    value = debye_series(p, t, 0, TERMS)
    slope = q - square_p * (0.5 + debye_series(p, t, 1, TERMS))
    factor = tl.zeros_like(p) + 1.0
    for step in tl.static_range(STEPS):  # I_{j-1} = I_j (2j + k^2 B_j) / k, each factor over s to stay in range
        denominator = 2.0 * (v - step) + square * slope
        factor *= denominator * p
        slope = reciprocal(denominator)
    return value, factor, slope


@triton.jit
def _fall(x):
    """x, but over -1, which it is by rounding only."""
    return tl.maximum(x, -0.9999999999999999, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _class_part(k, v, STEPS: tl.constexpr, TERMS: tl.constexpr):
    """What ``_ratio`` needs of a class: k^2, s, and of F(k) the tail's sum and one over its factor."""
    square = k * k
    s, p = root(v * v + square)
    value, factor, _ = _tail(square, p, reciprocal(v + s), v, STEPS, TERMS)
    return square, s, value, reciprocal(factor)


@triton.jit
def _ratio(increment, square, s, offset, inverse_factor, v, STEPS: tl.constexpr, TERMS: tl.constexpr):
    """F(k') - F(k) + value + offset and 2 dF / d(k^2) at k'^2 = k^2 + increment, by STEPS of the recurrence down from
    order v; ``value`` is the class's, and square, s and inverse_factor are of ``_class_part``."""
    increment = tl.maximum(increment, -square, propagate_nan=tl.PropagateNan.ALL)
    s_raised, p_raised = root(tl.maximum(tl.fma(s, s, increment), v * v, propagate_nan=tl.PropagateNan.ALL))
    both, v_s, v_raised = s + s_raised, v + s, v + s_raised
    q_raised = reciprocal(v_raised)
    # s' - s = d = y (v_s + v_raised), and v_raised / v_s = (1 + y) / (1 - y)
    y = increment * reciprocal(both * (v_s + v_raised))
    d = y * (v_s + v_raised)
    ratio = y
    if increment.dtype == tl.float32:
        # d - v log(v_raised / v_s) = y both - 2 v (atanh(y) - y), where nothing cancels
        near = y * (both - (2.0 * v) * ((y * y) * atanh_tail(y * y)))
        ratio = tl.where(tl.abs(y) < 1 / 3, near, d + v * log(v_s * q_raised))
    else:
        ratio = d - v * log1p(_fall(d / v_s))
    raised = square
    if STEPS > 0:
        raised = tl.maximum(square + increment, 0.0, propagate_nan=tl.PropagateNan.ALL)
        ratio += (STEPS - 0.5) * log_of_quotient(d * reciprocal(both), _fall(d / s), s * p_raised)
    else:
        ratio += 0.5 * log(s * p_raised)
    value, factor, slope = _tail(raised, p_raised, q_raised, v, STEPS, TERMS)
    if STEPS > 0:
        ratio += log(factor * inverse_factor)
    return ratio + (value + offset), slope


@triton.jit
def _ratio_kernel(increments, kappa, ratio, slope, rows, classes, v: "fp64",  # noqa: F821
                  WITH_SLOPE: tl.constexpr, STEPS: tl.constexpr, TERMS: tl.constexpr, ACC: tl.constexpr,
                  ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """A block of columns of ROWS rows: increments, ratio and slope (rows, classes), contiguous; kappa (classes,)."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < classes
    k = _saturated(tl.load(kappa + column, mask=inside, other=0.0))
    v = _number(v, ACC)
    square, s, value, inverse_factor = _class_part(k, v, STEPS, TERMS)
    largest = _longest(ACC) * _longest(ACC)
    first = tl.program_id(0) * ROWS
    for row in range(first, tl.minimum(first + ROWS, rows)):
        here = (tl.full((), 0, tl.int64) + row) * classes + column
        increment = tl.load(increments + here, mask=inside, other=0.0)
        increment = tl.minimum(increment, largest, propagate_nan=tl.PropagateNan.ALL)
        value_raised, b = _ratio(increment, square, s, -value, inverse_factor, v, STEPS, TERMS)
        tl.store(ratio + here, value_raised, mask=inside)
        if WITH_SLOPE:
            tl.store(slope + here, 0.5 * b, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _cross_entropy_kernel(
    products, features, target, directions, kappa, log_prior, state, losses, total_loss, arrived, mean_weight, gradient,
    rows, stride, start, parts, classes, width,
    v: "fp64", inverse_temperature: "fp64", unit: "fp64",  # noqa: F821
    ignore_index: "i64", SHARE: tl.constexpr, ADD: tl.constexpr, MEAN_GRADIENT: tl.constexpr,  # noqa: F821
    LABELLED: tl.constexpr, PRIOR: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, WITH_GRADIENT: tl.constexpr,
    STEPS: tl.constexpr, TERMS: tl.constexpr, ACC: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Rows of one block of classes, [start, start + parts ALIGN). All tensors but the target are ACC, and contiguous.

    products (rows, count), rows ``stride`` apart: becomes the weights of the directions in the gradient; features
    (rows, width); target (rows,) int64; directions (classes, width); kappa and log_prior (classes,); state (rows, 5):
    the peak, the sum and the pull of the running softmax, the label's logit and slope; gradient (rows, width). losses
    (rows,), total_loss, arrived and mean_weight: see ``ltfast.ops.reduction``.
    """
    inverse_temperature, unit, v = _number(inverse_temperature, ACC), _number(unit, ACC), _number(v, ACC)
    longest, smallest = _longest(ACC), tl.full((), SMALL_DOUBLE if tl.float64 == ACC else SMALL, ACC)
    c = tl.arange(0, BLOCK)
    inside = c < parts * ALIGN
    # what belongs to a class, once for all rows
    k = _saturated(tl.load(kappa + start + c, mask=inside, other=0.0))
    square, s, value, inverse_factor = _class_part(k, v, STEPS, TERMS)
    offset = -value
    if PRIOR:
        offset += tl.load(log_prior + start + c, mask=inside, other=0.0)
    offset = tl.where(inside, offset, -float("inf"))
    stretch = 2.0 * inverse_temperature * k
    share = mean_share(target, mean_weight, rows, ignore_index, SHARE, ACC)
    if MEAN_GRADIENT:
        unit *= share

    for number in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.full((), 0, tl.int64) + number
        here = products + row * stride + c
        product = tl.load(here, mask=inside, other=0.0)
        own_state = state + 5 * row
        before = tl.full((), -1.7976931348623157e308 if tl.float64 == ACC else -3.4028234663852886e38, ACC)
        total = tl.full((), 0.0, ACC)
        pull = tl.full((), 0.0, ACC)
        own_logit = tl.full((), 0.0, ACC)
        own_slope = tl.full((), 0.0, ACC)
        if not FIRST:  # before any reduction: no warp may have stored its new state
            before = tl.load(own_state).to(ACC)
            total = tl.load(own_state + 1).to(ACC)
            pull = tl.load(own_state + 2).to(ACC)
            own_logit = tl.load(own_state + 3).to(ACC)
            own_slope = tl.load(own_state + 4).to(ACC)
        y = tl.full((), -1, tl.int64)
        if LABELLED:
            y = tl.load(target + row)
        of_block = (y >= start) & (y < start + parts * ALIGN)  # not beside the block, where the logits are -inf
        own = c == tl.where(of_block, y - start, -1).to(tl.int32)

        squares = tl.zeros((WIDTH,), ACC)
        for j in range(0, WIDTH if WHOLE else width, WIDTH):
            column = j + tl.arange(0, WIDTH)
            z = tl.load(features + row * width + column, mask=column < width, other=0.0)
            squares += z * z + (z - z)  # NaN if z is not finite
        shift = tl.sum(squares) * inverse_temperature * inverse_temperature
        shortened = tl.full((), 1.0, ACC)  # what is left of longer features
        if shift > longest * longest:  # rare: squares and products may have overflowed
            squares = tl.zeros((WIDTH,), ACC)
            for j in range(0, WIDTH if WHOLE else width, WIDTH):
                column = j + tl.arange(0, WIDTH)
                z = smallest * tl.load(features + row * width + column, mask=column < width, other=0.0)
                squares += z * z
            shortened = smallest * (longest / (tl.sqrt(tl.sum(squares)) * inverse_temperature))
            shift = longest * longest
            for i in range(parts * ALIGN):  # slow, but it takes no registers from the usual rows
                own_row = directions + (start + i).to(tl.int64) * width
                part = tl.zeros((WIDTH,), ACC)
                for j in range(0, WIDTH if WHOLE else width, WIDTH):
                    column = j + tl.arange(0, WIDTH)
                    z = tl.load(features + row * width + column, mask=column < width, other=0.0)
                    part += (shortened * z) * tl.load(own_row + column, mask=column < width, other=0.0)
                product = tl.where(c == i, tl.sum(part), product)

        logits, slopes = _ratio(product * stretch + shift, square, s, offset, inverse_factor, v, STEPS, TERMS)
        own_logit += tl.sum(tl.where(own, logits, 0.0))
        own_slope += tl.sum(tl.where(own, slopes, 0.0))
        peak = tl.maximum(before, tl.max(logits))
        faded = exp(before - peak)
        e = exp(logits - peak)
        pulls = e * slopes
        total = total * faded + tl.sum(e)
        pull = pull * faded + tl.sum(pulls)

        ignored = row < 0
        if LABELLED:
            ignored = y == ignore_index
        if LAST:
            valid = (y >= 0) & (y < classes)
            # A label out of range makes the row NaN: raising would have to wait for the GPU.
            missing = tl.where(valid | ignored | (not LABELLED), 0.0, float("nan")).to(ACC)
            row_loss = tl.log(total) + (peak - own_logit) + missing
            # the softmax's part less the label's; the product of `products` with the directions is still to be added
            scale = unit / total
            radial = (pull * scale - unit * own_slope + missing) * inverse_temperature * inverse_temperature * shortened
            pull_own = unit * own_slope * inverse_temperature * _saturated(tl.load(kappa + y, mask=valid, other=0.0))
        else:
            scale = tl.full((), 1.0, ACC)
            tl.store(own_state, peak)
            tl.store(own_state + 1, total)
            tl.store(own_state + 2, pull)
            tl.store(own_state + 3, own_logit)
            tl.store(own_state + 4, own_slope)
        if WITH_GRADIENT:
            if ignored:
                tl.store(here, tl.zeros((BLOCK,), ACC), mask=inside)
            else:
                tl.store(here, pulls * (0.5 * scale) * stretch, mask=inside)
            for j in range(0, WIDTH if WHOLE else width, WIDTH):
                column = j + tl.arange(0, WIDTH)
                within = column < width
                g = tl.zeros((WIDTH,), ACC)
                if not FIRST:
                    earlier = tl.load(gradient + row * width + column, mask=within, other=0.0)
                    g = earlier * (faded * scale)
                if LAST:
                    z = tl.load(features + row * width + column, mask=within, other=0.0)
                    # of a label out of range any other's: the row is NaN
                    own_row = directions + tl.where(valid, y, 0) * width
                    direction = tl.load(own_row + column, mask=within, other=0.0)
                    g += radial * z - pull_own * direction
                    g = tl.where(ignored, 0.0, g)
                tl.store(gradient + row * width + column, g, mask=within)
        if LAST:  # last, so that the thread that stores it announces it
            tl.store(losses + row, tl.where(ignored, 0.0, row_loss) * share)
    add_losses(losses, total_loss, arrived, rows, ADD)


def expansion_options(nu: float, dtype: torch.dtype) -> tuple[float, dict[str, Any]]:
    """The order of the expansion, and the recurrence's steps down from it."""
    double = dtype == torch.float64
    order = ORDER if double else ORDER_SINGLE
    steps = order if nu < order else 0
    options = {
        "STEPS": steps,
        "TERMS": terms_from(nu + steps, not double),
        "ACC": tl.float64 if double else tl.float32,
    }
    return nu + steps, options


def vmf_ratio(increments: Tensor, kappa: Tensor, nu: float, with_slope: bool) -> tuple[Tensor, Tensor]:
    rows, classes = increments.shape
    ratio = torch.empty_like(increments)
    slope = torch.empty_like(increments) if with_slope else increments.new_empty(0)
    v, options = expansion_options(nu, increments.dtype)
    launch = ratio_launch(increments.dtype)
    _ratio_kernel[(triton.cdiv(rows, launch.rows), triton.cdiv(classes, launch.block))](
        increments, kappa, ratio, slope, rows, classes, v, WITH_SLOPE=with_slope, **options, **launch.options
    )  # fmt: skip
    return ratio, slope


def vmf_cross_entropy(*arguments: Any) -> tuple[Tensor, Tensor]:
    return blocks.cross_entropy(_epilogue, *arguments)


def _epilogue(products: Tensor, start: int, count: int, rows: blocks.Rows) -> Tensor:
    features, target, settings = rows.features, rows.target, rows.settings
    batch, width = features.shape
    classes = len(rows.directions)
    last = start + count == classes
    v, options = expansion_options(width / 2 - 1, features.dtype)
    chip = chip_of(features.device)
    launch = epilogue_launch(count, width, features.dtype, chip)
    reduced = reduction_of(rows.losses, target, settings.reduction if last else "none", settings.ignore_index)
    _cross_entropy_kernel[(epilogue_programs(batch, launch, chip),)](
        products, features, target, rows.directions, rows.kappa, rows.log_prior, rows.state, *reduced.arguments,
        rows.gradient, batch, products.stride(0), start, count // launch.align, classes, width,
        v, 1 / settings.temperature, rows.unit, settings.ignore_index,
        **reduced.constants,
        MEAN_GRADIENT=rows.mean_gradient and last,
        LABELLED=target is not None,
        PRIOR=rows.log_prior is not None,
        FIRST=start == 0,
        LAST=last,
        WITH_GRADIENT=rows.gradient is not None,
        WHOLE=width <= launch.width,
        **options,
        **launch.options,
    )  # fmt: skip
    return reduced.result()
