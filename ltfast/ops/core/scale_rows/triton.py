"""The GPU kernel. It tells on the device whether there is anything to do, so nothing synchronises."""

import triton
import triton.language as tl
from torch import Tensor

from ltfast.ops.core.launch import chip_of, vector_width
from ltfast.ops.core.scale_rows.launch import programs, scale_launch


@triton.jit(do_not_specialize=["rows", "columns"])
def _scale_rows_kernel(matrix, factor, rows, columns, unit: "fp64",  # noqa: F821
                       EACH: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Every n-th row, of n programs: matrix (rows, columns), contiguous; factor (rows,) if ``EACH``, or (1,).
    ``columns`` is divided by ``WIDTH``."""
    if EACH:
        for row in range(tl.program_id(0), rows, tl.num_programs(0)):
            _scale_row(matrix, tl.load(factor + row), row, columns, unit, WIDTH, BLOCK)
    else:
        f = tl.load(factor)
        if f * tl.cast(unit, f.dtype) != 1.0:
            for row in range(tl.program_id(0), rows, tl.num_programs(0)):
                _scale_row(matrix, f, row, columns, unit, WIDTH, BLOCK)


@triton.jit
def _scale_row(matrix, f, row, columns, unit, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    f *= tl.cast(unit, f.dtype)
    if f != 1.0:
        x = matrix + tl.cast(row, tl.int64) * columns * WIDTH
        for start in range(0, columns * WIDTH, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column // WIDTH < columns
            value = tl.load(x + column, mask=inside).to(f.dtype)
            tl.store(x + column, (value * f).to(matrix.dtype.element_ty), mask=inside)


def scale_rows_(matrix: Tensor, factor: Tensor, unit: float) -> None:
    rows, columns = matrix.shape
    width = vector_width(matrix.dtype, columns)
    _scale_rows_kernel[(programs(rows, chip_of(matrix.device)),)](
        matrix, factor, rows, columns // width, unit, EACH=factor.numel() > 1, WIDTH=width,
        **scale_launch(columns).options,
    )  # fmt: skip
