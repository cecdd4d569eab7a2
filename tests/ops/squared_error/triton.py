import torch
import triton
import triton.language as tl
from ltfast.ops.squared_error.launch import row_launch
from ltfast.ops.squared_error.settings import SquaredErrorSettings
from torch import Tensor

from ltfast.ops.core.tensors import accumulator, empty_gradient, reduce


@triton.jit
def _row_kernel(logits, target, loss, gradient, row_stride, column_stride, classes,
                scale: "fp64", unit: "fp64", ignore_index: "i64",  # noqa: F821
                WITH_GRADIENT: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    y = tl.load(target + row)
    total = tl.full((), 0.0, ACC)
    for start in range(0, classes, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < classes
        x = tl.load(logits + row * row_stride + column * column_stride, mask=inside, other=0.0).to(ACC)
        error = tl.where(column == y, x - tl.cast(scale, ACC), x)
        total += tl.sum(error * error)
        if WITH_GRADIENT:
            g = tl.where(y == ignore_index, 0.0, 2.0 * tl.cast(unit, ACC) * error)
            tl.store(gradient + row * classes + column, g.to(gradient.dtype.element_ty), mask=inside)
    tl.store(loss + row, total)


def squared_error(
    logits: Tensor, target: Tensor, settings: SquaredErrorSettings, with_gradient: bool, unit: float
) -> tuple[Tensor, Tensor]:
    rows, classes = logits.shape
    acc = accumulator(logits.dtype)
    loss = torch.empty(rows, dtype=acc, device=logits.device)
    gradient = empty_gradient(logits, with_gradient)
    _row_kernel[(rows,)](
        logits, target, loss, gradient, logits.stride(0), logits.stride(1), classes,
        settings.scale, unit, settings.ignore_index, WITH_GRADIENT=with_gradient,
        ACC=tl.float64 if acc == torch.float64 else tl.float32, **row_launch(classes).options,
    )  # fmt: skip
    counted = target != settings.ignore_index
    if settings.reduction == "mean" and logits.dtype != torch.float16:
        gradient /= counted.sum()
    return reduce(loss, settings.reduction, counted), gradient
