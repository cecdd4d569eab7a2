"""The GPU kernel. It tells on the device whether there is anything to do, so nothing synchronises."""

import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.core.scale_rows.launch import row_launch


@triton.jit
def _scale_rows_kernel(matrix, factor, factor_stride, columns, unit: "fp64", BLOCK: tl.constexpr):  # noqa: F821
    """One row: matrix (rows, columns), contiguous; factor (rows,) if ``factor_stride`` is 1, or (1,) if it is 0."""
    row = tl.program_id(0).to(tl.int64)
    f = tl.load(factor + row * factor_stride)
    f = f * tl.cast(unit, f.dtype)
    if f != 1.0:
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = matrix + row * columns + column
            value = tl.load(x, mask=column < columns).to(f.dtype)
            tl.store(x, (value * f).to(matrix.dtype.element_ty), mask=column < columns)


def scale_rows_(matrix: Tensor, factor: Tensor, unit: float) -> None:
    rows, columns = matrix.shape
    stride = int(factor.numel() > 1)
    _scale_rows_kernel[(rows,)](
        matrix, factor, stride, columns, unit, **row_launch(columns).options
    )  # fmt: skip
