"""The GPU kernel: a program walks the labels for one class and some columns, so every sum is in the rows' order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.core.launch import register_limit
from ltfast.ops.core.tensors import accumulator

ROWS = 64  # labels looked at together; without a member they cost no more


@triton.jit
def _class_sums_kernel(features, labels, sums, counts, row_stride, rows, width,
                       ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
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


def launch_options(width: int) -> dict[str, int]:
    columns = min(max(triton.next_power_of_2(width), 32), 512)
    return {"ROWS": ROWS, "COLUMNS": columns, "num_warps": max(columns // 128, 1)} | register_limit(64)


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    rows, width = features.shape
    acc = accumulator(features.dtype)
    sums = features.new_empty(num_classes, width, dtype=acc)
    counts = labels.new_empty(num_classes)
    options = launch_options(width)
    _class_sums_kernel[(num_classes, triton.cdiv(width, options["COLUMNS"]))](
        features, labels, sums, counts, features.stride(0), rows, width,
        ACC=tl.float64 if acc == torch.float64 else tl.float32, **options,
    )  # fmt: skip
    return sums, counts
