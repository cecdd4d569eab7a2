"""The CPU kernel: csrc/ops/scale_rows.cpp."""

import torch
from torch import Tensor

from ltfast.ops.core import backends


def scale_rows_(matrix: Tensor, factor: Tensor, unit: float) -> None:
    backends.native().scale_rows(
        str(matrix.dtype)[6:],
        matrix.data_ptr(),
        factor.data_ptr(),
        int(factor.numel() > 1),
        unit,
        matrix.shape[0],
        matrix.shape[1],
        torch.get_num_threads(),
    )
