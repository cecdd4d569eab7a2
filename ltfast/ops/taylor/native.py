"""The CPU kernels: csrc/ops/taylor.cpp."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ltfast.ops.core import backends
from ltfast.ops.taylor.tables import dtype_codes, importance_codes, table


def taylor_importance_(*lists: Sequence[Tensor]) -> None:
    backends.native().taylor_importance(table(lists, importance_codes(*lists)), torch.get_num_threads())


def importance_threshold(fraction: float, values: Sequence[Tensor], *masks: Sequence[Tensor]) -> Tensor:
    found = values[0].new_empty(())
    packed = table((values, *masks), dtype_codes(values))
    if not backends.native().importance_threshold(packed, fraction, found.data_ptr(), torch.get_num_threads()):
        raise ValueError("no value is left: expected masks with a True element")
    return found


def apply_masks_(*lists: Sequence[Tensor]) -> None:
    packed = table(lists, [tensor.element_size() for tensor in lists[0]])
    backends.native().apply_masks(packed, torch.get_num_threads())
