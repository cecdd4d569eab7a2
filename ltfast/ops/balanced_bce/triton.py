"""The GPU kernel: one read of the logits, one write of the gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.balanced_bce.launch import row_launch
from ltfast.ops.balanced_bce.reference import label_values
from ltfast.ops.balanced_bce.settings import BalancedBceSettings
from ltfast.ops.core.launch import chip_of
from ltfast.ops.core.tensors import accumulator, empty_gradient
from ltfast.ops.reduction.triton import add_losses, mean_share, reduction_of

LIMIT = tl.constexpr(1e30)  # logits saturate here, so that finite logits give a finite loss


@triton.jit
def _softplus_negative(magnitude, TERMS: tl.constexpr):
    """log(1 + e^-|z|) = 2 atanh(s) with s = e / (2 + e), and e = e^-|z|: exact to the last bits for any |z|."""
    e = tl.exp(-magnitude)
    s = e / (2.0 + e)
    q = s * s
    p = q * 0.0
    for k in tl.static_range(TERMS):
        p = p * q + 2.0 / (2 * (TERMS - k) - 1)
    return s * p, e


@triton.jit(do_not_specialize=["rows"])
def _row_kernel(
    logits, target, bias, class_weight, pos_weight, losses, total, arrived, mean_weight, gradient,
    row_stride, target_stride, rows, classes,
    on_value: "fp64", off_value: "fp64", threshold: "fp64", unit: "fp64",  # noqa: F821
    ignore_index: "i64", SHARE: tl.constexpr, ADD: tl.constexpr,  # noqa: F821
    SOFT: tl.constexpr, THRESHOLD: tl.constexpr, WEIGHTED: tl.constexpr, POS_WEIGHTED: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, ACC: tl.constexpr, TERMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss and the gradient of one row.

    logits (rows, classes), rows ``row_stride`` apart; target (rows,) int64, or if SOFT (rows, classes), rows
    ``target_stride`` apart; bias, class_weight and pos_weight (classes,) ACC; gradient (rows, classes), contiguous.
    losses (rows,) ACC, total, arrived and mean_weight: see ``ltfast.ops.reduction``.
    """
    row = tl.program_id(0).to(tl.int64)
    unit = tl.cast(unit, ACC)
    row_loss = tl.full((), 0.0, ACC)
    share = mean_share(target, mean_weight, rows, ignore_index, SHARE, ACC)
    if gradient.dtype.element_ty != tl.float16:
        unit *= share
    ignored = row < 0
    if not SOFT:
        y = tl.load(target + row)
        ignored = y == ignore_index
        # A label out of range makes the row NaN: raising would have to wait for the GPU.
        valid = tl.where(((y >= 0) & (y < classes)) | ignored, 1.0, float("nan")).to(ACC)
    for start in range(0, classes, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < classes
        if SOFT:
            t = tl.load(target + row * target_stride + column, mask=inside, other=0.0).to(ACC)
            if THRESHOLD:
                t = tl.where(t > tl.cast(threshold, ACC), 1.0, 0.0).to(ACC)
        else:
            t = tl.where(column == y, tl.cast(on_value, ACC), tl.cast(off_value, ACC)) * valid
        z = tl.load(logits + row * row_stride + column, mask=inside, other=0.0).to(ACC)
        z += tl.load(bias + column, mask=inside, other=0.0)
        finite = z - z  # 0, or NaN for an infinite logit
        z = tl.where(z < -LIMIT, -LIMIT, z)
        z = tl.where(z > LIMIT, LIMIT, z) + finite  # unlike clamp, keeps NaN
        q = tl.full((BLOCK,), 1.0, ACC)
        positive = t
        if POS_WEIGHTED:
            p = tl.load(pos_weight + column, mask=inside, other=1.0)
            q += (p - 1.0) * t
            positive = p * t
        softplus, e = _softplus_negative(tl.abs(z), TERMS)
        slope = tl.where(z < 0, positive, 1.0 - t)  # below 0, (1 - t) z would nearly cancel -q z
        term = slope * tl.abs(z) + q * softplus
        w = tl.full((BLOCK,), 1.0, ACC)
        if WEIGHTED:
            w = tl.load(class_weight + column, mask=inside, other=0.0)
        row_loss += tl.sum(tl.where(inside, w * term, 0.0))
        if WITH_GRADIENT:
            rise = w * (slope - q * (e / (1.0 + e))) * unit
            g = tl.where(ignored, 0.0, tl.where(z < 0, -rise, rise))
            tl.store(gradient + row * classes + column, g.to(gradient.dtype.element_ty), mask=inside)
    tl.store(losses + row, tl.where(ignored, 0.0, row_loss) * share)
    add_losses(losses, total, arrived, rows, ADD)


def series_terms(dtype: torch.dtype) -> int:
    """Terms of atanh's series for s up to 1/3: the next one is below the last bit."""
    return 17 if dtype == torch.float64 else 7


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
    on, off = label_values(classes, settings)
    acc = accumulator(logits.dtype)
    gradient = empty_gradient(logits, with_gradient)
    losses = torch.empty(rows, dtype=acc, device=logits.device)
    # of soft targets none is ignored
    reduction = reduction_of(losses, None if soft else target, settings.reduction, settings.ignore_index)
    _row_kernel[(rows,)](
        logits, target, bias, weight, pos_weight, *reduction.arguments, gradient,
        logits.stride(0), target.stride(0), rows, classes,
        on, off, 0.0 if settings.threshold is None else settings.threshold, unit, settings.ignore_index,
        **reduction.constants,
        SOFT=soft,
        THRESHOLD=settings.threshold is not None,
        WEIGHTED=weight is not None,
        POS_WEIGHTED=pos_weight is not None,
        WITH_GRADIENT=with_gradient,
        ACC=tl.float64 if acc == torch.float64 else tl.float32,
        TERMS=series_terms(logits.dtype),
        **row_launch(classes, acc, chip_of(logits.device)).options,
    )  # fmt: skip
    return reduction.result(), gradient
