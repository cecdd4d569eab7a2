"""The GPU kernel. A row that fits in registers is read once; a longer one is read block by block, twice."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.core.launch import chip_of, vector_width
from ltfast.ops.core.tensors import accumulator, empty_gradient
from ltfast.ops.cross_entropy.launch import row_launch
from ltfast.ops.cross_entropy.settings import CrossEntropySettings
from ltfast.ops.reduction.triton import add_losses, mean_share, reduction_of

LIMIT = tl.constexpr(1e30)  # a score counts as at most this far below the largest of its row, for a finite loss
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _scores(logits, bias, zero, column, read, BIASED: tl.constexpr, ACC: tl.constexpr):
    """The logits plus the bias; -inf where not ``read``."""
    z = tl.load(logits + column, mask=read, other=-float("inf")).to(ACC)
    if BIASED:
        z += tl.load(bias + zero + column, mask=read, other=0.0)
    return z


@triton.jit
def _shares(target, weight, zero, column, read, y, on, off, SOFT: tl.constexpr, WEIGHTED: tl.constexpr,
            ACC: tl.constexpr):  # fmt: skip
    """The shares a_c of the classes in the loss: on t + off for soft targets, and on or off for labels."""
    if SOFT:
        share = tl.load(target + column, mask=read, other=0.0).to(ACC) * on + off
    else:
        share = tl.where(column == y, on, off)
    if WEIGHTED:
        return share * tl.load(weight + zero + column, mask=read, other=0.0)
    return tl.where(read, share, 0.0)


@triton.jit(do_not_specialize=["row_stride", "target_stride", "rows", "classes"])
def _row_kernel(
    logits, target, bias, weight, losses, total, arrived, mean_weight, gradient,
    row_stride, target_stride, rows, classes,
    on_value: "fp64", off_value: "fp64", unit: "fp64",  # noqa: F821
    ignore_index: "i64", SHARE: tl.constexpr, ADD: tl.constexpr,  # noqa: F821
    SOFT: tl.constexpr, SMOOTH: tl.constexpr, BIASED: tl.constexpr, WEIGHTED: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, ACC: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss and the gradient of one row.

    logits (rows, classes), rows ``row_stride`` apart; target (rows,) int64, or if SOFT (rows, classes), rows
    ``target_stride`` apart; bias and weight (classes,) ACC; gradient (rows, classes), contiguous. ``classes`` and the
    strides are divided by ``WIDTH``. losses (rows,) ACC, total, arrived and mean_weight: see ``ltfast.ops.reduction``.
    SMOOTH: labels are smoothed.
    """
    row = tl.program_id(0).to(tl.int64)
    unit = tl.cast(unit, ACC)
    on = tl.cast(on_value, ACC)
    off = tl.cast(off_value, ACC)
    share = mean_share(target, mean_weight, rows, ignore_index, SHARE, ACC)
    if gradient.dtype.element_ty != tl.float16:
        unit *= share
    reads = row >= 0  # an ignored row is not read, and its gradient becomes 0
    y = -1
    if SOFT:
        target += row * target_stride * WIDTH
    else:
        label = tl.load(target + row)
        reads = label != ignore_index
        valid = (label >= 0) & (label < tl.cast(classes, tl.int64) * WIDTH) & reads
        y = tl.where(valid, label, -1).to(tl.int32)
        # A label out of range makes the row NaN: raising would have to wait for the GPU.
        broken = tl.where(valid | (label == ignore_index), 1.0, float("nan")).to(ACC)
        on *= broken
        off *= broken
        unit = tl.where(reads, unit, 0.0)  # the share is infinite where all rows are ignored
    reads = tl.where(reads, True, False)  # as in balanced_bce
    logits += row * row_stride * WIDTH
    gradient += row * classes * WIDTH
    # It is 0, but the compiler only knows that it is a multiple of WIDTH. So it takes the vectors of the classes for no
    # better aligned than the rows, and loads all in the layout in which it stores the gradient.
    zero = tl.program_id(1) * WIDTH

    lowest = -1.7976931348623157e308 if tl.float64 == ACC else -3.4028234663852886e38
    farthest = tl.full((), -LIMIT, ACC)  # a number by itself would be rounded to float32
    peak = tl.full((), lowest, ACC)  # not -inf, which all scores of a block may be
    mass = tl.full((), 0.0, ACC)
    shares = tl.full((), 0.0, ACC)
    terms = tl.full((), 0.0, ACC)
    if ONE_BLOCK:
        column = tl.arange(0, BLOCK)
        inside = column // WIDTH < classes
        z = _scores(logits, bias, zero, column, inside & reads, BIASED, ACC)
        peak = tl.maximum(tl.max(z), peak)
        d = z - peak
        e = tl.exp2(d * LOG2_E)
        mass = tl.sum(e)
        if SOFT or SMOOTH:
            a = _shares(target, weight, zero, column, inside & reads, y, on, off, SOFT, WEIGHTED, ACC)
            shares = tl.sum(a)
            terms = tl.sum(a * tl.maximum(d, farthest))
    else:
        for start in range(0, classes * WIDTH, BLOCK):
            column = start + tl.arange(0, BLOCK)
            read = (column // WIDTH < classes) & reads
            z = _scores(logits, bias, zero, column, read, BIASED, ACC)
            higher = tl.maximum(tl.max(z), peak)
            shift = tl.maximum(peak - higher, farthest)
            peak = higher
            d = z - peak
            e = tl.exp2(d * LOG2_E)
            mass = mass * tl.exp2(shift * LOG2_E) + tl.sum(e)
            if SOFT or SMOOTH:
                a = _shares(target, weight, zero, column, read, y, on, off, SOFT, WEIGHTED, ACC)
                # every score so far is further down than the limit
                terms = tl.where(shift > farthest, terms, 0.0) + shift * shares + tl.sum(a * tl.maximum(d, farthest))
                shares += tl.sum(a)

    log_sum = tl.where(mass == 0.0, float("nan"), tl.log(mass))  # it is at least 1, unless all scores are -inf
    if SOFT or SMOOTH:
        row_loss = shares * log_sum - terms
    else:
        own = tl.load(logits + y, mask=y >= 0, other=0.0).to(ACC)
        if BIASED:
            own += tl.load(bias + y, mask=y >= 0, other=0.0)
        shares = on
        if WEIGHTED:
            shares *= tl.load(weight + y, mask=y >= 0, other=0.0)
        bounded = tl.where(own == -float("inf"), own, tl.maximum(own - peak, farthest))
        row_loss = shares * (log_sum - bounded)
    tl.store(losses + row, tl.where(reads, row_loss, 0.0) * share)
    if WITH_GRADIENT:
        pull = tl.where(reads, shares * unit / mass, 0.0)
        if ONE_BLOCK:
            push = a * unit if SOFT or SMOOTH else tl.where(column == y, shares * unit, 0.0)
            tl.store(gradient + column, (e * pull - push).to(gradient.dtype.element_ty), mask=inside)
        else:
            for start in range(0, classes * WIDTH, BLOCK):
                column = start + tl.arange(0, BLOCK)
                inside = column // WIDTH < classes
                z = _scores(logits, bias, zero, column, inside & reads, BIASED, ACC)
                e = tl.exp2((z - peak) * LOG2_E)
                if SOFT or SMOOTH:
                    a = _shares(target, weight, zero, column, inside & reads, y, on, off, SOFT, WEIGHTED, ACC)
                push = a * unit if SOFT or SMOOTH else tl.where(column == y, shares * unit, 0.0)
                tl.store(gradient + column, (e * pull - push).to(gradient.dtype.element_ty), mask=inside)
    add_losses(losses, total, arrived, rows, ADD)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    settings: CrossEntropySettings,
    with_gradient: bool,
    unit: float,
) -> tuple[Tensor, Tensor]:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    soft = target.dim() == 2
    if soft and target.stride(1) != 1:
        target = target.contiguous()
    rows, classes = logits.shape
    smooth = settings.label_smoothing > 0
    width = vector_width(logits.dtype, classes, logits.stride(0), target.stride(0) if soft else 0)
    acc = accumulator(logits.dtype)
    gradient = empty_gradient(logits, with_gradient)
    losses = torch.empty(rows, dtype=acc, device=logits.device)
    # of soft targets none is ignored
    reduction = reduction_of(losses, None if soft else target, settings.reduction, settings.ignore_index)
    off = settings.label_smoothing / classes
    on = 1 - settings.label_smoothing + (0.0 if soft else off)
    _row_kernel[(rows,)](
        logits, target, bias, weight, *reduction.arguments, gradient,
        logits.stride(0) // width, target.stride(0) // width, rows, classes // width,
        on, off, unit, settings.ignore_index,
        **reduction.constants,
        SOFT=soft,
        SMOOTH=smooth,
        BIASED=bias is not None,
        WEIGHTED=weight is not None,
        WITH_GRADIENT=with_gradient,
        ACC=tl.float64 if acc == torch.float64 else tl.float32,
        WIDTH=width,
        **row_launch(classes, acc, chip_of(logits.device), not soft and not smooth).options,
    )  # fmt: skip
    return reduction.result(), gradient
