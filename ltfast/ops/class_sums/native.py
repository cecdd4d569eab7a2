"""The CPU kernel: csrc/ops/class_sums.cpp."""

import torch
from torch import Tensor

from ltfast.ops.core import backends
from ltfast.ops.core.tensors import accumulator


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    rows, width = features.shape
    sums = features.new_empty(num_classes, width, dtype=accumulator(features.dtype))
    counts = labels.new_empty(num_classes)
    backends.native().class_sums(
        str(features.dtype)[6:],
        features.data_ptr(),
        features.stride(0),
        labels.data_ptr(),
        sums.data_ptr(),
        counts.data_ptr(),
        rows,
        width,
        num_classes,
        torch.get_num_threads(),
    )
    return sums, counts
