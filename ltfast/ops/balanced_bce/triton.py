"""The GPU kernel: one read of the logits, one write of the gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.balanced_bce.launch import row_launch
from ltfast.ops.balanced_bce.reference import label_values, soft_values
from ltfast.ops.balanced_bce.settings import BalancedBceSettings
from ltfast.ops.core.launch import chip_of, vector_width
from ltfast.ops.core.tensors import accumulator, empty_gradient
from ltfast.ops.reduction.triton import add_losses, mean_share, reduction_of

LIMIT = tl.constexpr(1e30)  # logits saturate here, so that finite logits give a finite loss
LOG2_E = tl.constexpr(1.4426950408889634)
TERMS = tl.constexpr(17)  # of atanh's series for s up to 1/3: the next one is below float64's last bit


@triton.jit
def _log1p(e):
    """log(1 + e) for 0 <= e <= 1.

    In float32 it is e times a polynomial, with a relative error of 3e-7. In float64 it is 2 atanh(s) with
    s = e / (2 + e), exact to the last bits.
    """
    if e.dtype == tl.float64:
        s = e / (2.0 + e)
        q = s * s
        p = q * 0.0
        for k in tl.static_range(TERMS):
            p = p * q + 2.0 / (2 * (TERMS - k) - 1)
        return s * p
    else:
        p = e * -0.0085392063 + 0.044089623  # the smallest relative error of all polynomials of this degree
        p = p * e - 0.1076817
        p = p * e + 0.1774524
        p = p * e - 0.24495463
        p = p * e + 0.3327548
        p = p * e - 0.49997404
        p = p * e + 0.9999998
        return p * e


@triton.jit
def _reciprocal(x, APPROXIMATE: tl.constexpr):
    """1 / x for 1 <= x <= 2. On NVIDIA's GPUs the approximation is one instruction, within 1 ulp."""
    if APPROXIMATE:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], tl.float32, is_pure=True, pack=1)
    else:
        return 1.0 / x


@triton.jit(do_not_specialize=["row_stride", "target_stride", "rows", "classes"])
def _row_kernel(
    logits, target, bias, class_weight, pos_weight, losses, total, arrived, mean_weight, gradient,
    row_stride, target_stride, rows, classes,
    on_value: "fp64", off_value: "fp64", threshold: "fp64", unit: "fp64",  # noqa: F821
    ignore_index: "i64", SHARE: tl.constexpr, ADD: tl.constexpr,  # noqa: F821
    SOFT: tl.constexpr, SMOOTH: tl.constexpr, THRESHOLD: tl.constexpr, WEIGHTED: tl.constexpr,
    POS_WEIGHTED: tl.constexpr, WITH_GRADIENT: tl.constexpr, ACC: tl.constexpr, APPROXIMATE: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss and the gradient of one row.

    logits (rows, classes), rows ``row_stride`` apart; target (rows,) int64, or if SOFT (rows, classes), rows
    ``target_stride`` apart; bias, class_weight and pos_weight (classes,) ACC; gradient (rows, classes), contiguous.
    ``classes`` and the strides are divided by ``WIDTH``. losses (rows,) ACC, total, arrived and mean_weight: see
    ``ltfast.ops.reduction``.
    """
    row = tl.program_id(0).to(tl.int64)
    unit = tl.cast(unit, ACC)
    share = mean_share(target, mean_weight, rows, ignore_index, SHARE, ACC)
    if gradient.dtype.element_ty != tl.float16:
        unit *= share
    reads = row >= 0  # an ignored row is not read, and its gradient becomes 0
    if not SOFT:
        label = tl.load(target + row)
        reads = label != ignore_index
        unit = tl.where(reads, unit, 0.0)
        valid = (label >= 0) & (label < tl.cast(classes, tl.int64) * WIDTH)
        y = tl.where(valid, label, -1).to(tl.int32)
        # A label out of range makes the row NaN: raising would have to wait for the GPU.
        broken = tl.where(valid | (label == ignore_index), 1.0, float("nan")).to(ACC)
        on = tl.cast(on_value, ACC) * broken
        off = tl.cast(off_value, ACC) * broken
    reads = tl.where(reads, True, False)  # Triton 3.9's interpreter takes a comparison of scalars for an integer
    logits += row * row_stride * WIDTH
    gradient += row * classes * WIDTH
    # It is 0, but the compiler only knows that it is a multiple of WIDTH. So it takes the vectors of the classes for no
    # better aligned than the rows, and loads both in the layout in which it stores the gradient. Otherwise the results
    # would change their threads, through shared memory.
    zero = tl.program_id(1) * WIDTH
    sums = tl.zeros((BLOCK,), ACC)
    for start in range(0, classes * WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column // WIDTH < classes
        read = inside & reads
        if SOFT:
            t = tl.load(target + row * target_stride * WIDTH + column, mask=read, other=0.0).to(ACC)
            if SMOOTH:
                t = t * tl.cast(on_value, ACC) + tl.cast(off_value, ACC)
            if THRESHOLD:
                t = tl.where(t > tl.cast(threshold, ACC), 1.0, 0.0).to(ACC)
        else:
            t = tl.where(column == y, on, off)
        z = tl.load(logits + column, mask=read, other=0.0).to(ACC) + tl.load(bias + zero + column, mask=read, other=0.0)
        negative = z < 0
        magnitude = tl.minimum(tl.abs(z), LIMIT) + z * 0.0  # NaN for an infinite logit
        if tl.float64 == ACC:
            e = tl.where(inside, tl.exp(-magnitude), 0.0)
        else:
            e = tl.exp2(magnitude * -LOG2_E + tl.where(inside, 0.0, -float("inf")))  # beside the row, 0
        softplus = _log1p(e)
        q = 1.0
        positive = t
        if POS_WEIGHTED:
            p = tl.load(pos_weight + zero + column, mask=read, other=1.0)
            q += (p - 1.0) * t
            positive = p * t
        slope = tl.where(negative, positive, 1.0 - t)  # below 0, (1 - t) z would nearly cancel -q z
        w = 1.0
        if WEIGHTED:
            w = tl.load(class_weight + zero + column, mask=read, other=0.0)
        if WEIGHTED or POS_WEIGHTED:
            sums += w * (slope * magnitude + q * softplus)
        else:
            sums += slope * magnitude
            sums += softplus
        if WITH_GRADIENT:
            rise = (slope - q * e * _reciprocal(1.0 + e, APPROXIMATE)) * (w * unit)
            tl.store(gradient + column, tl.where(negative, -rise, rise).to(gradient.dtype.element_ty), mask=inside)
    row_loss = tl.where(reads, tl.sum(sums), 0.0)
    tl.store(losses + row, row_loss * share)
    add_losses(losses, total, arrived, rows, ADD)


def balanced_bce(
    logits: Tensor,
    target: Tensor,
    bias: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    settings: BalancedBceSettings,
    with_gradient: bool,
    unit: float,
) -> tuple[Tensor, Tensor]:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    soft = target.dim() == 2
    if soft and target.stride(1) != 1:
        target = target.contiguous()
    rows, classes = logits.shape
    chip = chip_of(logits.device)
    width = vector_width(logits.dtype, classes, logits.stride(0), target.stride(0) if soft else 0)
    on, off = soft_values(classes, settings) if soft else label_values(classes, settings)
    acc = accumulator(logits.dtype)
    gradient = empty_gradient(logits, with_gradient)
    losses = torch.empty(rows, dtype=acc, device=logits.device)
    # of soft targets none is ignored
    reduction = reduction_of(losses, None if soft else target, settings.reduction, settings.ignore_index)
    _row_kernel[(rows,)](
        logits, target, bias, weight, pos_weight, *reduction.arguments, gradient,
        logits.stride(0) // width, target.stride(0) // width, rows, classes // width,
        on, off, 0.0 if settings.threshold is None else settings.threshold, unit, settings.ignore_index,
        **reduction.constants,
        SOFT=soft,
        SMOOTH=soft and settings.label_smoothing > 0,
        THRESHOLD=settings.threshold is not None,
        WEIGHTED=weight is not None,
        POS_WEIGHTED=pos_weight is not None,
        WITH_GRADIENT=with_gradient,
        ACC=tl.float64 if acc == torch.float64 else tl.float32,
        APPROXIMATE=acc == torch.float32 and chip.has_ptx,
        WIDTH=width,
        **row_launch(rows, classes, acc, chip, not soft and weight is None and pos_weight is None).options,
    )  # fmt: skip
    return reduction.result(), gradient
