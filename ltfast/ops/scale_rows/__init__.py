"""``matrix *= unit * factor`` in place, row by row: how a gradient that a forward pass left behind meets the incoming
one. Rows whose product is 1 are neither read nor written, so a plain ``loss.backward()`` costs nothing here.
"""

import torch
from torch import Tensor

from ltfast.ops import backends

__all__ = ["scale_rows_"]


@torch.library.custom_op("ltfast::scale_rows_", mutates_args=("matrix",))
def scale_rows_(matrix: Tensor, factor: Tensor, unit: float) -> None:
    """Args:
    matrix: (B, C), contiguous, any float dtype.
    factor: one value, or (B,) or (B, 1), a value a row; float32, or float64 for a float64 matrix.
    unit: multiplies every factor.
    """
    if backends.resolve_kernel(matrix.device) == "native":
        from ltfast.ops.scale_rows.native import scale_rows_ as kernel
    else:
        from ltfast.ops.scale_rows.triton import scale_rows_ as kernel
    kernel(matrix, factor.contiguous(), unit)


@scale_rows_.register_fake
def _(matrix: Tensor, factor: Tensor, unit: float) -> None:
    return None
