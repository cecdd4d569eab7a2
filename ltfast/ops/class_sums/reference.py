"""The definition in plain PyTorch."""

import torch
from torch import Tensor

from ltfast.ops.core.checks import check_reference_labels
from ltfast.ops.core.tensors import accumulator


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    check_reference_labels(labels, num_classes, "labels")
    labels = labels.long()
    sums = features.new_zeros(num_classes, features.shape[1], dtype=accumulator(features.dtype))
    counts = labels.new_zeros(num_classes)
    return sums.index_add(0, labels, features.to(sums.dtype)), counts.index_add(0, labels, torch.ones_like(labels))
