"""The GPU kernel. It tells on the device whether there is anything to do, so nothing synchronises."""

import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.core.launch import chip_of
from ltfast.ops.core.scale_rows.launch import programs, scale_launch


@triton.jit(do_not_specialize=["rows"])
def _scale_rows_kernel(matrix, factor, rows, columns, unit: "fp64", EACH: tl.constexpr, BLOCK: tl.constexpr):  # noqa: F821
    """Every n-th row, of n programs: matrix (rows, columns), contiguous; factor (rows,) if ``EACH``, or (1,)."""
    if EACH:
        for row in range(tl.program_id(0), rows, tl.num_programs(0)):
            _scale_row(matrix, tl.load(factor + row), row, columns, unit, BLOCK)
    else:
        f = tl.load(factor)
        if f * tl.cast(unit, f.dtype) != 1.0:
            for row in range(tl.program_id(0), rows, tl.num_programs(0)):
                _scale_row(matrix, f, row, columns, unit, BLOCK)


@triton.jit
def _scale_row(matrix, f, row, columns, unit, BLOCK: tl.constexpr):
    f *= tl.cast(unit, f.dtype)
    if f != 1.0:
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = matrix + tl.cast(row, tl.int64) * columns + column
            value = tl.load(x, mask=column < columns).to(f.dtype)
            tl.store(x, (value * f).to(matrix.dtype.element_ty), mask=column < columns)


def scale_rows_(matrix: Tensor, factor: Tensor, unit: float) -> None:
    rows, columns = matrix.shape
    _scale_rows_kernel[(programs(rows, chip_of(matrix.device)),)](
        matrix, factor, rows, columns, unit, EACH=factor.numel() > 1, **scale_launch(columns).options
    )
