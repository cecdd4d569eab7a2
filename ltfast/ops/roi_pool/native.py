"""The CPU kernels: csrc/roi_pool.h."""

import torch
from torch import Tensor

from ltfast.ops.core import backends


def roi_pool(features: Tensor, boxes: Tensor, pooled: Tensor, *options: float) -> None:
    _call(features, boxes, pooled, False, *options)


def roi_pool_backward(gradient: Tensor, boxes: Tensor, grad_pooled: Tensor, *options: float) -> None:
    _call(gradient, boxes, grad_pooled, True, *options)


def _call(features: Tensor, boxes: Tensor, pooled: Tensor, backward: bool, *options: float) -> None:
    backends.native().roi_pool(
        str(features.dtype)[6:],
        features.data_ptr(),
        boxes.data_ptr(),
        pooled.data_ptr(),
        *features.shape,
        boxes.shape[1],
        backward,
        *options,
        torch.get_num_threads(),
    )
