"""The GPU kernel: a program walks over the labels for one class and some columns, and adds in their order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.class_sums.launch import class_launch
from ltfast.ops.core.launch import chip_of
from ltfast.ops.core.tensors import accumulator


@triton.jit
def _class_sums_kernel(features, labels, sums, counts, row_stride, rows, width,
                       ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """The sum of a block of columns for one class, and the number of its rows.

    features (rows, width), rows ``row_stride`` apart; labels (rows,) int64; sums (classes, width) ACC, contiguous;
    counts (classes,) int64.
    """
    c = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    total = tl.zeros((COLUMNS,), ACC)
    count = tl.full((), 0, tl.int64)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        label = tl.load(labels + row, mask=row < rows, other=-1)
        members = tl.sum((label == c).to(tl.int32))
        count += members
        if members > 0:
            for i in range(start, tl.minimum(start + ROWS, rows)):
                # a width, not a truth value: Triton 3.9's interpreter cannot spread one over a mask
                own = tl.where(tl.load(labels + i) == c, width, 0)
                x = features + tl.cast(i, tl.int64) * row_stride + column
                total += tl.load(x, mask=column < own, other=0.0).to(ACC)
    tl.store(sums + c.to(tl.int64) * width + column, total, mask=inside)
    if tl.program_id(1) == 0:
        tl.store(counts + c, count)


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    rows, width = features.shape
    acc = accumulator(features.dtype)
    sums = features.new_empty(num_classes, width, dtype=acc)
    counts = labels.new_empty(num_classes)
    launch = class_launch(width, chip_of(features.device))
    _class_sums_kernel[(num_classes, triton.cdiv(width, launch.columns))](
        features, labels, sums, counts, features.stride(0), rows, width,
        ACC=tl.float64 if acc == torch.float64 else tl.float32, **launch.options,
    )  # fmt: skip
    return sums, counts
